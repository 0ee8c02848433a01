"""What the API does with uploads, data sets and versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import Forbidden, InvalidRequest, PayloadTooLarge
from rlt_client.schemas import builds as wire
from rlt_client.schemas.builds import SourceFormat
from rlt_jobs import pages
from rlt_jobs.builds import quotas
from rlt_jobs.builds.models import Scorer
from rlt_jobs.builds.sources import kinds
from rlt_jobs.builds.views import scorer_view
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings
from rlt_jobs.store import repository
from rlt_jobs.store.files import HashingWriter, Store
from rlt_jobs.store.models import Upload, Version

__all__ = ["StoreService"]

CHUNK = 2**20
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StoreService:
    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        self._settings = settings
        self._database = database
        self._store = store

    async def upload(self, owner: str, name: str | None, media_type: str, body: AsyncIterator[bytes]) -> wire.Upload:
        """Stream a body into the store. Its format is told by what it is, else by `media_type`, else by `name`.

        Raises:
            PayloadTooLarge
            Forbidden: `quota_exceeded`.
            InvalidRequest: empty, cut off, or none of the formats.
        """
        upload_id = uuid4()
        parts = _parts(body)
        head = await anext(parts, b"")
        await self._admit(owner, len(head))  # who has no room left is told at once
        if not head:
            raise InvalidRequest("the body is empty: send a file of problems", type="empty_upload")
        format, suffix = kinds.of_upload(media_type, name, head)
        async with self._store.writing(f"uploads/{upload_id}{suffix}") as pending:
            part, tail = head, b""
            while part:
                await self._write(pending.writer, part)
                tail, part = (tail + part)[-4:], await anext(parts, b"")
            kinds.check_end(format, tail)
        try:
            async with self._database.begin() as session:  # in one: uploads that end together are counted in turn
                await quotas.admit_upload(session, self._settings, owner, pending.stored.bytes)
                row = await repository.add_upload(session, upload_id, owner, name, pending.stored, format)
        except Forbidden:
            await asyncio.to_thread(self._store.remove, pending.uri)
            raise
        return _upload_view(row)

    async def _admit(self, owner: str, size: int) -> None:
        """Raises `Forbidden`: `quota_exceeded`."""
        async with self._database.begin() as session:
            await quotas.admit_upload(session, self._settings, owner, size)

    async def _write(self, writer: HashingWriter, part: bytes) -> None:
        if writer.size + len(part) > self._settings.max_upload_bytes:
            raise PayloadTooLarge(f"an upload has {self._settings.max_upload_bytes} bytes at most")
        await asyncio.to_thread(writer.write, part)

    async def uploads(self, owner: str, cursor: str | None, limit: int) -> wire.UploadPage:
        after = pages.decode(cursor, "uploads", int, str)
        below = _upload_key(*after) if after else None
        async with self._database.begin() as session:
            rows = await repository.uploads(session, owner, below, limit + 1)
        page, more = pages.split(rows, limit)
        key = [_microseconds(page[-1].created_at), page[-1].id.hex] if more else None
        items = [_upload_view(row) for row in page]
        return wire.UploadPage(items=items, next=pages.encode("uploads", key) if key else None)

    async def datasets(self, owner: str, cursor: str | None, limit: int) -> wire.DatasetPage:
        after = pages.decode(cursor, "datasets", str)
        async with self._database.begin() as session:
            rows = await repository.datasets(session, owner, after[0] if after else "", limit + 1)
        page, more = pages.split(rows, limit)
        items = [
            wire.Dataset(
                name=row.Dataset.name,
                created_at=row.Dataset.created_at,
                builds=row.builds,
                versions=row.versions,
                latest_version=row.newest,
            )
            for row in page
        ]
        return wire.DatasetPage(items=items, next=pages.encode("datasets", [items[-1].name]) if more else None)

    async def versions(self, owner: str, name: str, cursor: str | None, limit: int) -> wire.VersionPage:
        after = pages.decode(cursor, "versions", int)
        async with self._database.begin() as session:
            dataset = await repository.dataset(session, name, owner)
            rows = await repository.versions(session, dataset.id, after[0] if after else None, limit + 1)
            page, more = pages.split(rows, limit)
            items = [await _view(session, name, version, scorer) for version, scorer in page]
        return wire.VersionPage(items=items, next=pages.encode("versions", [items[-1].number]) if more else None)

    async def version(self, owner: str, version_id: int) -> wire.Version:
        async with self._database.begin() as session:
            version, dataset, scorer = await repository.find_version(session, version_id, owner)
            return await _view(session, dataset.name, version, scorer)


async def _parts(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body in pieces worth a thread's while."""
    held = bytearray()
    async for piece in body:
        held += piece
        if len(held) >= CHUNK:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _upload_view(row: Upload) -> wire.Upload:
    return wire.Upload(
        id=row.id,
        name=row.name,
        format=SourceFormat(row.format),
        bytes=row.bytes,
        sha256=row.sha256,
        created_at=row.created_at,
    )


def _microseconds(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def _upload_key(microseconds: int, upload_id: str) -> tuple[datetime, UUID]:
    try:
        return EPOCH + timedelta(microseconds=microseconds), UUID(upload_id)
    except (ValueError, OverflowError) as error:
        raise pages.bad_cursor() from error


async def _view(session: AsyncSession, dataset: str, version: Version, scorer: Scorer | None) -> wire.Version:
    files = await repository.version_files(session, version.id)
    manifest = wire.FileRef(
        uri=version.manifest_uri, rows=version.rows, bytes=version.manifest_bytes, sha256=version.manifest_sha256
    )
    return wire.Version(
        id=version.id,
        dataset=dataset,
        number=version.number,
        parent=version.parent_id,
        build=version.build_id,
        rows=version.rows,
        selection=wire.Selection.model_validate(version.selection),
        scorer=scorer_view(scorer),
        manifest=manifest,
        files=[wire.FileRef(uri=f.uri, rows=f.rows, bytes=f.bytes, sha256=f.sha256) for f in files],
        counts=version.counts,
        lineage=version.lineage,
        created_at=version.created_at,
    )
