"""`/uploads`, `/datasets`, `/versions`."""

from __future__ import annotations

import sys
from typing import Annotated

from fastapi import Path, Query, Request
from starlette.requests import ClientDisconnect

from rlt_client.errors import InvalidRequest
from rlt_client.schemas import builds as wire
from rlt_client.schemas.builds import storable
from rlt_client.schemas.common import FieldError, Scope
from rlt_jobs.pages import Cursor, Limit
from rlt_jobs.parameters import Caller, VersionId
from rlt_jobs.store.service import StoreService
from rlt_service.auth import requires
from rlt_service.routing import Router

__all__ = ["router"]

DatasetName = Annotated[str, Path(max_length=wire.MAX_NAME, pattern=wire.NAME_PATTERN)]
UploadName = Annotated[str | None, Query(max_length=255, description="for people, such as the file's name")]


def router(service: StoreService) -> Router:
    routes = Router(tags=["datasets"], dependencies=[requires(Scope.build)])

    @routes.post("/uploads", status_code=201, max_body_size=sys.maxsize)  # the settings' own limit is counted
    async def create_upload(request: Request, caller: Caller, name: UploadName = None) -> wire.Upload:
        """The body is the file itself: JSON lines, CSV with a header, or Parquet; the first two also as gzip."""
        _refuse_forms(request)
        media_type = request.headers.get("content-type", "")
        try:
            return await service.upload(caller.owner, _checked(name), media_type, request.stream())
        except ClientDisconnect as error:
            raise InvalidRequest("the upload broke off", type="incomplete_upload") from error

    @routes.get("/uploads")
    async def list_uploads(caller: Caller, cursor: Cursor = None, limit: Limit = 100) -> wire.UploadPage:
        """Newest first."""
        return await service.uploads(caller.owner, cursor, limit)

    @routes.get("/datasets")
    async def list_datasets(caller: Caller, cursor: Cursor = None, limit: Limit = 100) -> wire.DatasetPage:
        """By name."""
        return await service.datasets(caller.owner, cursor, limit)

    @routes.get("/datasets/{name}/versions")
    async def list_versions(
        name: DatasetName, caller: Caller, cursor: Cursor = None, limit: Limit = 100
    ) -> wire.VersionPage:
        """Newest first."""
        return await service.versions(caller.owner, name, cursor, limit)

    @routes.get("/versions/{version_id}")
    async def get_version(version_id: VersionId, caller: Caller) -> wire.Version:
        return await service.version(caller.owner, version_id)

    return routes


def _refuse_forms(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise InvalidRequest("send the file itself as the body, not a form", type="unsupported_media_type")


def _checked(name: str | None) -> str | None:
    try:
        return None if name is None else storable(name)
    except ValueError as error:
        raise InvalidRequest(errors=[FieldError(pointer="/query/name", detail=str(error))]) from error
