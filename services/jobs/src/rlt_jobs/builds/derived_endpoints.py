"""Routes of builds that are made of what another build left."""

from __future__ import annotations

from fastapi import Response

from rlt_client.schemas import builds as wire
from rlt_client.schemas.builds import RerankRequest, RescoreRequest
from rlt_client.schemas.common import Scope
from rlt_jobs.builds.derived import DerivedBuilds
from rlt_jobs.builds.endpoints import IdempotencyKey
from rlt_jobs.builds.service import BuildService
from rlt_jobs.parameters import BuildId, Caller, VersionId
from rlt_service.auth import requires
from rlt_service.routing import Router

__all__ = ["router"]


def router(derived: DerivedBuilds, builds: BuildService) -> Router:
    routes = Router(tags=["builds"], dependencies=[requires(Scope.build)])

    @routes.post("/builds/{build_id}/rescore", status_code=202)
    async def rescore_build(
        build_id: BuildId, request: RescoreRequest, caller: Caller, response: Response, key: IdempotencyKey = None
    ) -> wire.Build:
        """Score the complete samples of a finished build again. The build that this makes publishes a new version.

        KL is computed from the tokens that the samples were generated as, where they were kept (`keep_tokens`) and the
        format is the same, else by a teacher that the reward server hosts.
        """
        return await _accepted(await derived.rescore(caller.owner, build_id, request, key), caller.owner, response)

    @routes.post("/versions/{version_id}/rerank", status_code=202)
    async def rerank_version(
        version_id: VersionId, request: RerankRequest, caller: Caller, response: Response, key: IdempotencyKey = None
    ) -> wire.Build:
        """Select other rows from the samples and scores of a version. Nothing is generated or scored."""
        return await _accepted(await derived.rerank(caller.owner, version_id, request, key), caller.owner, response)

    async def _accepted(build_id: int, owner: str, response: Response) -> wire.Build:
        response.headers["location"] = f"/builds/{build_id}"
        return await builds.get(owner, build_id)

    return routes
