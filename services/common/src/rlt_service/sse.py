"""Server-sent events: a reply that is written while it is made."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Final, Protocol

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from rlt_client.schemas.common import Scope as KeyScope
from rlt_service.auth import still_allowed
from rlt_service.callers import while_connected

__all__ = ["KEEPALIVE_COMMENT", "PING_S", "EventStreamResponse", "format_sse_event", "while_allowed"]

PING_S: Final = 15.0  # proxies close what is silent for 30 to 60 s


async def while_allowed(
    request: Request, scope: KeyScope, frames: AsyncIterator[bytes], *, every: float = PING_S
) -> AsyncIterator[bytes]:
    """Frames of a stream that may last for days, until its caller's key is taken back; asked as often as pings come."""
    asked = time.monotonic()
    async for frame in frames:
        if time.monotonic() - asked >= every:
            if not await still_allowed(request, scope):
                return
            asked = time.monotonic()
        yield frame


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
