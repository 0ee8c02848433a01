"""`DELETE` of builds, versions and uploads: each answers 204 and hides at once."""

from __future__ import annotations

from uuid import UUID

from rlt_client.schemas.common import Scope
from rlt_jobs.parameters import BuildId, Caller, VersionId
from rlt_jobs.store.deleting import Deletions
from rlt_service.auth import requires
from rlt_service.routing import Router

__all__ = ["router"]


def router(deletions: Deletions) -> Router:
    routes = Router(dependencies=[requires(Scope.build)])

    @routes.delete("/builds/{build_id}", status_code=204, tags=["builds"])
    async def delete_build(build_id: BuildId, caller: Caller) -> None:
        """Of a build that has ended. 409 while a version or another build reads from it."""
        await deletions.build(caller.owner, build_id)

    @routes.delete("/versions/{version_id}", status_code=204, tags=["datasets"])
    async def delete_version(version_id: VersionId, caller: Caller) -> None:
        """Versions that were derived from it stay as they are. Its number is not used again."""
        await deletions.version(caller.owner, version_id)

    @routes.delete("/uploads/{upload_id}", status_code=204, tags=["datasets"])
    async def delete_upload(upload_id: UUID, caller: Caller) -> None:
        """409 while a build imports it; what was imported stays."""
        await deletions.upload(caller.owner, upload_id)

    return routes
