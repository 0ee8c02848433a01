"""Many connections at the price of few.

httpcore's pool looks at all of its connections for each of its connections at every request: with 64 in flight that
is most of a client's processor time. Here requests go to the least busy of several small pools.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from functools import cache
from typing import Final, cast

import httpx

__all__ = ["Lanes"]

WIDTH: Final = 8  # connections of one pool: measured against 4 and 16, and the square of 8 is nothing


class Lanes(httpx.AsyncBaseTransport):
    """At most `connections` open ones, in pools of eight that are opened as they are needed."""

    def __init__(self, connections: int) -> None:
        self._widths = [min(WIDTH, connections - begun) for begun in range(0, connections, WIDTH)]
        self._busy = [0] * len(self._widths)
        self._pools: dict[int, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        lane = self._choose()
        self._busy[lane] += 1
        try:
            response = await self._pool(lane).handle_async_request(request)
        except BaseException:
            self._busy[lane] -= 1
            raise
        response.stream = _Counted(cast(httpx.AsyncByteStream, response.stream), self._busy, lane)
        return response

    def _choose(self) -> int:
        """The first pool with room, so that few calls share few connections; else the least busy one."""
        for lane, width in enumerate(self._widths):
            if self._busy[lane] < width:
                return lane
        return self._busy.index(min(self._busy))

    def _pool(self, lane: int) -> httpx.AsyncHTTPTransport:
        if lane not in self._pools:
            width = self._widths[lane]
            limits = httpx.Limits(max_connections=width, max_keepalive_connections=width)
            self._pools[lane] = httpx.AsyncHTTPTransport(verify=_certificates(), limits=limits)
        return self._pools[lane]

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: each pool would read them again."""
    return httpx.create_ssl_context()


class _Counted(httpx.AsyncByteStream):
    """A reply's body, whose end gives its place in the lane back."""

    def __init__(self, stream: httpx.AsyncByteStream, busy: list[int], lane: int) -> None:
        self._stream = stream
        self._busy = busy
        self._lane: int | None = lane

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece

    async def aclose(self) -> None:
        if self._lane is not None:
            self._busy[self._lane] -= 1
            self._lane = None
        await self._stream.aclose()
