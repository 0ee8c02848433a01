"""`/versions/{id}/export` over HTTP: whole, in ranges, or its headers alone (RFC 9110)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from rlt_client.schemas.builds import ExportFormat, ExportShape
from rlt_client.schemas.common import Problem, Scope
from rlt_jobs.parameters import Caller, VersionId
from rlt_jobs.store.export import MEDIA_TYPES
from rlt_jobs.store.exporting import Exported, ExportService
from rlt_jobs.store.files import Stored
from rlt_service.auth import requires
from rlt_service.problems import problem_response
from rlt_service.routing import Router

__all__ = ["router"]

_RANGE: Final = re.compile(r"bytes=(\d{1,18})?-(\d{1,18})?")


def router(service: ExportService) -> Router:
    routes = Router(tags=["datasets"], dependencies=[requires(Scope.build)])

    @routes.get("/versions/{version_id}/export", response_class=StreamingResponse)
    async def export_version(
        version_id: VersionId,
        caller: Caller,
        request: Request,
        format: ExportFormat = ExportFormat.jsonl,
        shape: ExportShape = ExportShape.messages,
    ) -> Response:
        """The version as a file.

        Its bytes never change, so that a download can go on where it broke off: with `Range` and the `ETag`, which is
        the SHA-256 of the whole, as `If-Range`. The first request may be answered while the file is written, without a
        length; a connection that breaks off means that it is not whole.
        """
        exported = await service.export(caller.owner, version_id, format, shape, along="range" not in request.headers)
        return _reply(exported, request.headers)

    @routes.head("/versions/{version_id}/export", include_in_schema=False)  # what GET says, without its body
    async def describe_export(
        version_id: VersionId,
        caller: Caller,
        format: ExportFormat = ExportFormat.jsonl,
        shape: ExportShape = ExportShape.messages,
    ) -> Response:
        exported = await service.describe(caller.owner, version_id, format, shape)
        headers = _headers(exported)
        if isinstance(exported.content, Stored):
            headers["content-length"] = str(exported.content.bytes)
        # a plain Response would say that a length which is not known is 0
        return StreamingResponse(iter(()), headers=headers, media_type=MEDIA_TYPES[format][0])

    return routes


def _reply(exported: Exported, asked: Mapping[str, str]) -> Response:
    headers, media_type = _headers(exported), MEDIA_TYPES[exported.format][0]
    stored = exported.content
    if not isinstance(stored, Stored):
        return StreamingResponse(exported.pieces(), headers=headers, media_type=media_type)
    wanted = _range(asked, stored)
    if wanted is None:
        headers["content-length"] = str(stored.bytes)
        return StreamingResponse(exported.pieces(), headers=headers, media_type=media_type)
    start, end = wanted
    if start >= end:
        problem = Problem(type="range_not_satisfiable", title="No such range", status=416)
        return problem_response(problem, 416, {"content-range": f"bytes */{stored.bytes}", "etag": headers["etag"]})
    headers["content-length"] = str(end - start)
    headers["content-range"] = f"bytes {start}-{end - 1}/{stored.bytes}"
    return StreamingResponse(exported.pieces(start, end), 206, headers=headers, media_type=media_type)


def _headers(exported: Exported) -> dict[str, str]:
    suffix = MEDIA_TYPES[exported.format][1]
    headers = {"content-disposition": f'attachment; filename="{exported.name}.{suffix}"', "accept-ranges": "bytes"}
    if isinstance(exported.content, Stored):
        digest = base64.b64encode(bytes.fromhex(exported.content.sha256)).decode()
        headers |= {"etag": _etag(exported.content), "repr-digest": f"sha-256=:{digest}:"}
    return headers


def _etag(stored: Stored) -> str:
    return f'"{stored.sha256}"'


def _range(asked: Mapping[str, str], stored: Stored) -> tuple[int, int] | None:
    """Bytes start … end−1; the end before the start if there are none such; None for all.

    Several ranges at once, other units and what cannot be read are ignored, as a server may.
    """
    found = _RANGE.fullmatch(asked.get("range", "").replace(" ", ""))
    if found is None or found.group() == "bytes=-" or asked.get("if-range", _etag(stored)) != _etag(stored):
        return None
    first, last = found.groups()
    if first is None:
        return max(0, stored.bytes - int(last)), stored.bytes
    if last is not None and int(last) < int(first):
        return None
    return int(first), stored.bytes if last is None else min(int(last) + 1, stored.bytes)
