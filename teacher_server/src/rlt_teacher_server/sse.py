"""The frames of a streamed explanation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from asgi_correlation_id import correlation_id
from pydantic import TypeAdapter

from rlt_client.schemas.explain import ExplainEvent, Failed
from rlt_service.sse import KEEPALIVE_COMMENT, PING_S, format_sse_event
from rlt_teacher_server.explain import ExplainStream

__all__ = ["EXPLAIN_STREAM", "explain_frames"]


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
