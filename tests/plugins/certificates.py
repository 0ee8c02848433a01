"""The certificates are read once: each client of httpx reads them anew, which takes a core 25 ms, and the servers of
these tests speak plain HTTP."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _certificates_read_once() -> Iterator[None]:
    make = ssl.create_default_context

    @cache
    def of_file(cafile: str) -> ssl.SSLContext:
        return make(cafile=cafile)

    def create(*args: Any, **given: Any) -> ssl.SSLContext:
        return of_file(given["cafile"]) if not args and given.keys() == {"cafile"} else make(*args, **given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ssl, "create_default_context", create)
        yield
