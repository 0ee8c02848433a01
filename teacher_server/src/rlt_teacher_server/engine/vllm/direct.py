"""HTTP/1.1 for hundreds of streams of small pieces, as a transport of httpx.

A piece costs 30 µs here, from the socket to the list of tokens, and 150 µs with the connections of httpx (uvloop, one
core): at 500 streams of 20 tokens a second that is a third of a core, or more than one has.
Not here: proxies, HTTP/2, bodies that only the end of the connection ends, time limits but the one for connecting. The
caller bounds the time.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Final, cast

import httptools
import httpx

__all__ = ["Direct"]

GATHER_S: Final = 0.05  # writes to callers are not closer together either
AT_ONCE: Final = 16  # readers woken before the loop looks at its sockets again: 1 ms
IDLE_S: Final = 3.0  # below the 5 s after which vLLM closes an idle connection: a request must not meet that moment


class Direct(httpx.AsyncBaseTransport):
    """As many connections as there are requests; one that is left idle is used again.

    Args:
        socket: a Unix socket to connect to, whatever the address says.
    """

    def __init__(self, socket: Path | None = None) -> None:
        self._socket = socket
        self._idle: deque[_Connection] = deque()
        """In the order in which they became idle; used again from the end, let go from the beginning."""

        self._later = _Later()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        head, content = _head(request), await request.aread()
        connection = self._reusable() or await self._open(request)
        try:
            connection.send(head + content)
            await connection.answered()
        except BaseException:
            connection.close()
            raise
        stream = _Body(connection, self._keep)
        return httpx.Response(connection.status, headers=connection.headers, stream=stream)

    def _reusable(self) -> _Connection | None:
        while self._idle:
            if (connection := self._idle.pop()).fresh:
                return connection
            connection.close()
        return None

    async def _open(self, request: httpx.Request) -> _Connection:
        loop, url = asyncio.get_running_loop(), request.url
        secure = _certificates() if url.scheme == "https" else None

        def connection() -> _Connection:
            return _Connection(self._later)

        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("connect")):
                if self._socket is not None:
                    return (await loop.create_unix_connection(connection, str(self._socket)))[1]
                port = url.port or (443 if secure else 80)
                return (await loop.create_connection(connection, url.host, port, ssl=secure))[1]
        except TimeoutError as error:
            raise httpx.ConnectTimeout("it does not accept the connection", request=request) from error
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error

    def _keep(self, connection: _Connection) -> None:
        """A server may answer 500 and close the connection thereafter."""
        if connection.reusable and connection.status < 500:
            connection.used = time.monotonic()
            while self._idle and not self._idle[0].fresh:
                self._idle.popleft().close()
            self._idle.append(connection)
        else:
            connection.close()

    async def aclose(self) -> None:
        while self._idle:
            self._idle.pop().close()


class _Later:
    """Wakes readers for what follows a first piece, all of them together and a few at a time.

    An engine sends what a step made to all streams at once. Read at once, hundreds of pieces would stand before the
    first token of a stream that has just begun.
    """

    def __init__(self) -> None:
        self._waiting: list[_Connection] = []

    def wake(self, connection: _Connection) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_later(GATHER_S, self._go)
        self._waiting.append(connection)

    def _go(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._some(deque(waiting))

    def _some(self, waiting: deque[_Connection]) -> None:
        for _ in range(min(AT_ONCE, len(waiting))):
            waiting.popleft().wake()
        if waiting:
            asyncio.get_running_loop().call_soon(self._some, waiting)


class _Connection(asyncio.Protocol):
    """One exchange after the other. httptools calls the methods whose names begin with `on_`."""

    def __init__(self, later: _Later) -> None:
        self._later = later
        self._parser = httptools.HttpResponseParser(self)
        self._failure: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.used = 0.0
        """When it became idle, seconds of `time.monotonic`."""
        self._begin()

    def _begin(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        """0 until the head of the answer is there."""
        self._complete = self._keeps = self._begun = self._due = False
        self._parts: list[bytes] = []

    @property
    def open(self) -> bool:
        return self._failure is None and not self._transport.is_closing()

    @property
    def fresh(self) -> bool:
        return self.open and time.monotonic() - self.used < IDLE_S

    @property
    def reusable(self) -> bool:
        return self.open and self._complete and self._keeps

    def send(self, request: bytes) -> None:
        self._begin()
        self._transport.write(request)

    def close(self) -> None:
        self._transport.abort()

    async def answered(self) -> None:
        while not self.status:
            await self._more()

    async def pieces(self) -> AsyncIterator[bytes]:
        """What has come since the last piece, joined."""
        while True:
            if self._parts:
                parts, self._parts = self._parts, []
                self._begun = True
                yield parts[0] if len(parts) == 1 else b"".join(parts)
            elif self._complete:
                return
            else:
                await self._more()

    async def _more(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def wake(self) -> None:
        self._due = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is none of asyncio's

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._failure = httpx.RemoteProtocolError(f"not HTTP: {error}")
            self._transport.abort()
        if self._complete or not self._begun or self._failure:
            self.wake()
        elif not self._due:
            self._due = True
            self._later.wake(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._failure is None:
            self._failure = httpx.ReadError(f"the connection broke off{f': {error}' if error else ''}")
        self.wake()

    def on_message_begin(self) -> None:
        if self._complete:
            raise httptools.HttpParserError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self.status < 200:  # it only says that the answer will come
            self._begin()
        else:
            self._complete, self._keeps = True, self._parser.should_keep_alive()


class _Body(httpx.AsyncByteStream):
    def __init__(self, connection: _Connection, end: Callable[[_Connection], None]) -> None:
        self._connection: _Connection | None = connection
        self._end = end

    def __aiter__(self) -> AsyncIterator[bytes]:
        assert self._connection is not None  # httpx reads a body once, before it closes it
        return self._connection.pieces()

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._end(connection)


def _head(request: httpx.Request) -> bytes:
    """Raises `httpx.LocalProtocolError`."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    if any(b"\n" in line or b"\r" in line for line in lines):
        raise httpx.LocalProtocolError("a header with a line break would be two", request=request)
    return b"\r\n".join((*lines, b"", b""))


@cache
def _certificates() -> ssl.SSLContext:
    """Read once, when they are needed."""
    return httpx.create_ssl_context()
