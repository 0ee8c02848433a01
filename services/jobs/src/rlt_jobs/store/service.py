"""What the API does with uploads, data sets and versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import InvalidRequest, PayloadTooLarge
from rlt_client.schemas import builds as wire
from rlt_jobs import pages
from rlt_jobs.builds.models import Scorer
from rlt_jobs.builds.views import scorer_view
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings
from rlt_jobs.store import repository
from rlt_jobs.store.files import HashingWriter, Store
from rlt_jobs.store.models import Version

__all__ = ["StoreService"]

CHUNK = 2**20


class StoreService:
    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        self._settings = settings
        self._database = database
        self._store = store

    async def upload(self, owner: str, name: str | None, body: AsyncIterator[bytes]) -> wire.Upload:
        """Stream a body to disk. Raises `PayloadTooLarge`, and `InvalidRequest` for an empty one."""
        upload_id = uuid4()
        async with self._store.writing(f"uploads/{upload_id}.jsonl") as pending:
            async for part in _parts(body):
                if pending.writer.size + len(part) > self._settings.max_upload_bytes:
                    raise PayloadTooLarge(f"an upload has {self._settings.max_upload_bytes} bytes at most")
                await asyncio.to_thread(pending.writer.write, part)
            _expect_some(pending.writer)
        async with self._database.begin() as session:
            row = await repository.add_upload(session, upload_id, owner, name, pending.stored)
        return wire.Upload(id=row.id, name=row.name, bytes=row.bytes, sha256=row.sha256, created_at=row.created_at)

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


def _expect_some(writer: HashingWriter) -> None:
    if writer.size == 0:
        raise InvalidRequest("the body is empty: send JSON lines", type="empty_upload")


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
