"""Server-sent events: a reply that is written while it is made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Final, Protocol

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from rlt_service.callers import while_connected

__all__ = ["KEEPALIVE_COMMENT", "PING_S", "EventStreamResponse", "format_sse_event"]

PING_S: Final = 15.0  # proxies close what is silent for 30 to 60 s


class Closable(Protocol):
    def aclose(self) -> Awaitable[object]: ...


class EventStreamResponse(StreamingResponse):
    """Writes frames until they end or the caller hangs up, then closes the stream that they are made of."""

    media_type = "text/event-stream"

    def __init__(self, stream: Closable, frames: AsyncIterator[bytes]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # nginx would gather what it gets
        super().__init__(frames, headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._stream):
            await while_connected(Request(scope, receive), self.stream_response(send))
