"""HTTP/1.1 connections that do not wait for ever, nor keep whatever comes, for callers that nobody knows yet.

uvicorn's own know one limit, on idle connections. Here a request's head has a time and a size, and its body must keep
coming; what uvicorn itself holds back, because the app is slow to read, is not counted against the caller.
Not here: callers that read their replies slowly, which keep one small buffer and no more.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BoundedProtocol"]

HEAD_S: Final = 60.0  # for the whole head of a request, from its first byte or the connection's begin; nginx's default
HEAD_BYTES: Final = 64 * 2**10  # what h11, uvicorn's other parser, takes
SILENCE_S: Final = 60.0  # without a byte of a body that was announced: a network may be away for half a minute
DRAIN_S: Final = 60.0  # for the rest of a body that was refused before it was read, so that the caller sees the reply
GRACE_S: Final = 1.0  # a busy loop runs timers before it reads what has come meanwhile

TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _At(Enum):
    """What is waited for."""

    idle = auto()
    head = auto()
    body = auto()
    reply = auto()


class BoundedProtocol(HttpToolsProtocol):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._at = _At.idle
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._at is _At.idle:
            self._begin_head()
        elif self._at is _At.body and not self._answered:
            self._arm(SILENCE_S)
        super().data_received(data)
        if self._at is _At.head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._at is not _At.head:  # one that was sent behind another
            self._begin_head()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._at = _At.body
        self._arm(SILENCE_S)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._disarm()
        self._at = _At.idle if self._answered else _At.reply

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._at is _At.reply:
            self._at = _At.idle
        elif self._at is _At.body:
            self._arm(DRAIN_S)

    @property
    def _answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _begin_head(self) -> None:
        self._at, self._head_bytes = _At.head, 0
        self._arm(HEAD_S)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = self.loop.call_later(GRACE_S, self._give_up)

    def _give_up(self) -> None:
        if self.flow.read_paused:
            self._arm(SILENCE_S)
        elif not self.transport.is_closing():
            self.transport.abort() if self._answered else self.transport.close()
