"""Server-sent events: a reply that is written while it is made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from asgi_correlation_id import correlation_id
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from rlt_client.schemas.explain import ExplainEvent, Failed
from rlt_service.callers import while_connected
from rlt_teacher_server.explain import ExplainStream

__all__ = ["EXPLAIN_STREAM", "PING_S", "EventStreamResponse", "explain_frames"]

PING_S: Final = 15.0  # proxies close what is silent for 30 to 60 s


def _documented() -> dict[str, Any]:
    """`ExplainEvent` for the OpenAPI document, as FastAPI would write it for a route that does nothing but stream."""
    schema = TypeAdapter(ExplainEvent).json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    events = {name: schema["$defs"][ref.rpartition("/")[2]] for name, ref in schema["discriminator"]["mapping"].items()}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"oneOf": [*events.values()]}}
    properties = {"event": {"type": "string", "enum": [*events]}, "data": data}
    shape = {"type": "object", "required": ["event", "data"], "properties": properties}
    return shape | {"description": schema["description"]}


EXPLAIN_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"itemSchema": _documented()}}}
}
"""For `responses` of a route: with `stream: true` it answers events."""


class EventStreamResponse(StreamingResponse):
    """Writes frames until they end or the caller hangs up, then closes the stream that they are made of."""

    media_type = "text/event-stream"

    def __init__(self, stream: ExplainStream, frames: AsyncIterator[bytes]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # nginx would gather what it gets
        super().__init__(frames, headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._stream):
            await while_connected(Request(scope, receive), self.stream_response(send))


async def explain_frames(stream: ExplainStream) -> AsyncIterator[bytes]:
    """All events that are due together in one piece; a comment where nothing has happened for a while."""
    while not stream.ended:
        events = await stream.take(PING_S)
        yield b"".join(map(_frame, events)) or KEEPALIVE_COMMENT


def _frame(event: ExplainEvent) -> bytes:
    if isinstance(event, Failed):
        problem = event.problem.model_copy(update={"request_id": correlation_id.get()})
        event = Failed(problem=problem)
    return format_sse_event(event=event.event, data_str=event.model_dump_json(by_alias=True))
