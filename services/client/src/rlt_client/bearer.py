"""The key of each request."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias

import httpx

__all__ = ["Bearer", "Key"]

Key: TypeAlias = str | Callable[[], str]
"""A key, or where the current one is to be had: one that lies in a file may be replaced while a program runs."""


class Bearer(httpx.Auth):
    """Sends a bearer token. A request that was refused with 401 is sent once more where the key is another by then."""

    def __init__(self, key: Key) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        sent = self._current()
        request.headers["authorization"] = f"Bearer {sent}"
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED and (newer := self._current()) != sent:
            request.headers["authorization"] = f"Bearer {newer}"
            yield request

    def _current(self) -> str:
        return self._key if isinstance(self._key, str) else self._key()
