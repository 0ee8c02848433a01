"""Routes of those who follow a build: its report, its progress as a stream, and asking again for what failed."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Header, Request

from rlt_client.schemas import builds as wire
from rlt_client.schemas.builds import RetryRequest
from rlt_client.schemas.common import Scope
from rlt_jobs.builds.report import Reports
from rlt_jobs.builds.retry import Retries
from rlt_jobs.builds.streaming import Streams
from rlt_jobs.parameters import BuildId, Caller
from rlt_service.auth import requires
from rlt_service.draining import is_closing
from rlt_service.routing import Router
from rlt_service.sse import EventStreamResponse, while_allowed

__all__ = ["router"]

LastEvent = Annotated[
    int | None,
    Header(
        alias="last-event-id",
        ge=0,
        lt=2**63,
        description="tell events after this one; 0: all; without it, those from now on",
    ),
]


def _documented() -> dict[str, Any]:
    """What the stream holds, for the OpenAPI document."""
    names = {"progress": "Build", "event": "BuildEvent", "done": "Build"}
    contents = [{"$ref": f"#/components/schemas/{name}"} for name in dict.fromkeys(names.values())]
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"oneOf": contents}}
    properties = {"event": {"type": "string", "enum": [*names]}, "data": data, "id": {"type": "string"}}
    return {"type": "object", "required": ["event", "data"], "properties": properties}


_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"itemSchema": _documented()}}}
}


def router(reports: Reports, retries: Retries, streams: Streams) -> Router:
    routes = Router(prefix="/builds/{build_id}", tags=["builds"], dependencies=[requires(Scope.build)])

    @routes.get("/report")
    async def report_build(build_id: BuildId, caller: Caller) -> wire.BuildReport:
        """Why samples failed, where they were cut off, how rewards spread."""
        return await reports.report(caller.owner, build_id)

    @routes.post("/retry")
    async def retry_build(build_id: BuildId, request: RetryRequest, caller: Caller) -> wire.Build:
        """Ask again for samples that ended so; the build runs on and publishes another version at its end."""
        return await retries.retry(caller.owner, build_id, request)

    @routes.get("/stream", status_code=200, response_class=EventStreamResponse, responses=_STREAM)
    async def stream_build(
        build_id: BuildId, caller: Caller, request: Request, last_event: LastEvent = None
    ) -> EventStreamResponse:
        """Server-sent events: `progress` when the build has changed, at most each second; `event`; `done` at the end.

        It ends without `done` where the server stops, or the key is taken back.
        """
        watching = await streams.watch(caller.owner, build_id, last_event)
        frames = watching.frames(lambda: is_closing(request.scope))
        return EventStreamResponse(watching, while_allowed(request, Scope.build, frames))

    return routes
