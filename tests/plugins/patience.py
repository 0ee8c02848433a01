"""A call that says no time-out waits a minute, not httpx's five seconds: a busy machine is slow, not wrong."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import httpx
import pytest

PATIENCE_S = 60.0


@pytest.fixture(scope="session", autouse=True)
def _patient() -> Iterator[None]:
    usual: httpx.Timeout = inspect.signature(httpx.get).parameters["timeout"].default  # one object for all of httpx
    with pytest.MonkeyPatch.context() as patched:
        for name in ("connect", "read", "write", "pool"):
            patched.setattr(usual, name, PATIENCE_S)
        assert (
            httpx.Client(verify=False).timeout == httpx.AsyncClient(verify=False).timeout == httpx.Timeout(PATIENCE_S)
        )
        yield
