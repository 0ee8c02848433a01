"""Server-sent events, read from a reply as it comes (WHATWG HTML, "Server-sent events").

Lines end at LF, CR LF or CR and nowhere else: JSON may hold other characters that text libraries break lines at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import httpx

from rlt_client.errors import DeadlineExceeded, ProtocolError, TransportError

__all__ = ["Decoder", "ServerSentEvent", "read_events"]

MEDIA_TYPE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    name: str
    data: str


class Decoder:
    """Bytes in, in pieces of any size; events out. What is not ended by an empty line is never given out."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._after_cr = False
        self._name = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """The events that `piece` completes. Raises `UnicodeDecodeError` for what is not UTF-8."""
        for line in self._lines(piece):
            event = self._take(line.decode("utf-8-sig"))
            if event is not None:
                yield event

    def _lines(self, piece: bytes) -> Iterator[bytes]:
        if not piece:
            return
        if self._after_cr:
            piece = piece.removeprefix(b"\n")
        self._after_cr = piece.endswith(b"\r")
        for part in piece.splitlines(keepends=True):
            line = part.rstrip(b"\r\n")
            self._line.append(line)
            if len(line) < len(part):
                yield b"".join(self._line)
                self._line.clear()

    def _take(self, line: str) -> ServerSentEvent | None:
        """`id`, `retry`, comments (a line that begins with a colon) and unknown fields say nothing here."""
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        event = ServerSentEvent(self._name or "message", "\n".join(self._data)) if self._data else None
        self._name = ""
        self._data.clear()
        return event


async def read_events(response: httpx.Response, *, until: float, idle: float) -> AsyncGenerator[ServerSentEvent, None]:
    """The events of a reply whose body was not read yet, until the server ends it.

    Args:
        until: when it must have ended, `time.monotonic`.
        idle: seconds without a single byte after which the server counts as gone.

    Raises:
        DeadlineExceeded, TransportError
        ProtocolError: it is no stream of events.
    """
    where = f"{response.request.method} {response.request.url.path}"
    kind = response.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise ProtocolError(f"{where} answered {kind or 'something without a type'} instead of {MEDIA_TYPE}")
    decoder = Decoder()
    async with aclosing(_pieces(response, where, until, idle)) as pieces:
        async for piece in pieces:
            try:
                events = list(decoder.feed(piece))
            except UnicodeDecodeError as error:
                raise ProtocolError(f"{where} sent what is not UTF-8: {error}") from error
            for event in events:
                yield event


async def _pieces(response: httpx.Response, where: str, until: float, idle: float) -> AsyncGenerator[bytes, None]:
    """Each read has its own time-out: one around all of them would also run while the caller works on an event."""
    pieces = response.aiter_bytes()
    while True:
        left = until - time.monotonic()
        try:
            async with asyncio.timeout(min(left, idle)):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            if left <= idle:
                raise DeadlineExceeded(f"{where}: the stream did not end within its deadline") from error
            raise TransportError(f"{where}: not a byte for {idle:g} s, where pings would come too") from error
        if piece is None:
            return
        yield piece
