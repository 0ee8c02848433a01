"""`/builds`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Query, Request, Response

from rlt_client.schemas import builds as wire
from rlt_client.schemas.builds import BuildRequest, BuildState, PriorityRequest, SampleSort
from rlt_client.schemas.common import GenStatus, Scope, ScoreStatus
from rlt_jobs.builds.browse import SampleFilter
from rlt_jobs.builds.service import BuildService
from rlt_jobs.pages import Cursor, Limit
from rlt_jobs.parameters import BuildId, Caller
from rlt_service.auth import requires
from rlt_service.rates import spend
from rlt_service.routing import Router

__all__ = ["router"]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="idempotency-key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="the same key gives the same build again, however often the request is sent",
    ),
]
WhetherDry = Annotated[bool, Query(description="store nothing; answer 200 with what the build would do")]
DatasetName = Annotated[str | None, Query(max_length=wire.MAX_NAME, pattern=wire.NAME_PATTERN)]


def router(service: BuildService) -> Router:
    routes = Router(prefix="/builds", tags=["builds"], dependencies=[requires(Scope.build)])

    @routes.post("", status_code=202, response_model=wire.Build, responses={200: {"model": wire.DryRun}})
    async def create_build(
        request: BuildRequest,
        caller: Caller,
        asked: Request,
        response: Response,
        key: IdempotencyKey = None,
        dry_run: WhetherDry = False,
    ) -> wire.Build | Response:
        """Accept a build. It is done later: follow it with GET."""
        if dry_run:
            told = await service.dry_run(caller.owner, request)
            return Response(told.model_dump_json(), media_type="application/json")
        spend(asked, len(request.problems or []) * request.n)  # of a source nobody knows yet: the quotas count it
        build = await service.submit(caller.owner, request, key)
        response.headers["location"] = f"/builds/{build.id}"
        return build

    @routes.get("")
    async def list_builds(
        caller: Caller,
        state: BuildState | None = None,
        dataset: DatasetName = None,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> wire.BuildPage:
        """Newest first."""
        return await service.page(caller.owner, state, dataset, cursor, limit)

    @routes.get("/{build_id}")
    async def get_build(build_id: BuildId, caller: Caller) -> wire.Build:
        return await service.get(caller.owner, build_id)

    @routes.get("/{build_id}/samples")
    async def list_samples(
        build_id: BuildId,
        caller: Caller,
        sort: SampleSort = SampleSort.by_index,
        descending: bool = False,
        gen_status: GenStatus | None = None,
        score_status: ScoreStatus | None = None,
        texts: Annotated[bool, Query(description="add question, answer, explanation and completion")] = False,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> wire.SamplePage:
        wanted = SampleFilter(gen_status, score_status)
        return await service.samples(
            caller.owner,
            build_id,
            sort=sort,
            descending=descending,
            wanted=wanted,
            texts=texts,
            cursor=cursor,
            limit=limit,
        )

    @routes.get("/{build_id}/events")
    async def list_events(
        build_id: BuildId, caller: Caller, cursor: Cursor = None, limit: Limit = 100
    ) -> wire.EventPage:
        """What happened to the build, oldest first: refused rows, dead shards."""
        return await service.events(caller.owner, build_id, cursor, limit)

    @routes.post("/{build_id}/pause")
    async def pause_build(build_id: BuildId, caller: Caller) -> wire.Build:
        """Workers stop within seconds; what is finished is kept, what is under way is given up."""
        return await service.act(caller.owner, build_id, "pause")

    @routes.post("/{build_id}/resume")
    async def resume_build(build_id: BuildId, caller: Caller) -> wire.Build:
        """Go on with a paused build, or try again what failed in a failed one."""
        return await service.act(caller.owner, build_id, "resume")

    @routes.post("/{build_id}/cancel")
    async def cancel_build(build_id: BuildId, caller: Caller) -> wire.Build:
        """End the build without a version, within seconds. Its samples stay readable."""
        return await service.act(caller.owner, build_id, "cancel")

    @routes.post("/{build_id}/priority")
    async def prioritise_build(build_id: BuildId, request: PriorityRequest, caller: Caller) -> wire.Build:
        """The next shard that a worker takes is of the build with the highest; who is at work finishes first."""
        return await service.prioritise(caller.owner, build_id, request.priority)

    return routes
