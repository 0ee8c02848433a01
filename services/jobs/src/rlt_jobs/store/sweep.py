"""The sweep: what was deleted and kept long enough, and files that nobody reads, are removed for good.

Rows go before files, in transactions of one batch each: a sweep that is killed leaves files that no row names, which
the next one removes. A file younger than the grace may still be waiting for its row and is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import (
    CompoundSelect,
    Executable,
    Row,
    Select,
    delete,
    exists,
    func,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_jobs.builds.models import Build, Event, Problem, Sample, Score, Shard
from rlt_jobs.database import Database, rows_changed
from rlt_jobs.settings import Settings
from rlt_jobs.store.backend import Entry
from rlt_jobs.store.deleting import readers
from rlt_jobs.store.files import Store
from rlt_jobs.store.models import ExportFile, File, Spool, Upload, Version, VersionFile

__all__ = ["sweep"]

log = logging.getLogger(__name__)

LOCK = 0x524C54_05  # the relay has those below
ROWS = 10_000  # rows a transaction, about: a tenth of a second
BATCH = 500  # files a transaction
GONE = ""  # the URI of a file that was removed while its row stays


async def sweep(database: Database, store: Store, settings: Settings, *, dry_run: bool = False) -> AsyncIterator[str]:
    """One line for each thing that is removed, or, with `dry_run`, would be. None if another sweep is under way."""
    async with _alone(database) as alone:
        if alone:
            async for line in _Sweep(database, store, settings, dry_run).run():
                yield line


@asynccontextmanager
async def _alone(database: Database) -> AsyncIterator[bool]:
    """Holds a lock of the session, not of a transaction: one that is open for minutes would stop every vacuum."""
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        alone = bool(await connection.scalar(select(func.pg_try_advisory_lock(LOCK))))
        try:
            yield alone
        finally:
            if alone:
                await connection.execute(select(func.pg_advisory_unlock(LOCK)))


class _Sweep:
    def __init__(self, database: Database, store: Store, settings: Settings, dry_run: bool) -> None:
        now = datetime.now(UTC)
        self._database = database
        self._store = store
        self._dry = dry_run
        self._kept_until = now - timedelta(days=settings.retention_days)
        self._graced_until = now - timedelta(hours=settings.orphan_hours)
        self._asked_until = now - timedelta(days=settings.export_days)
        self._used_until = now - timedelta(days=settings.unused_upload_days)

    async def run(self) -> AsyncIterator[str]:
        steps = (self._exports, self._versions, self._builds, self._uploads, self._superseded, self._unnamed)
        for step in (*steps, self._unfinished):
            async for line in step():
                yield line

    async def _exports(self) -> AsyncIterator[str]:
        unasked = ExportFile.asked_at < self._asked_until
        for row in await self._found(select(ExportFile.id, ExportFile.uri).where(unasked).order_by(ExportFile.id)):
            if await self._change(delete(ExportFile).where(ExportFile.id == row.id, unasked)):
                await self._remove([row.uri])
                yield f"{row.uri}: an export that nobody asked for"

    async def _versions(self) -> AsyncIterator[str]:
        """The row stays, hidden: derived versions name it, and its number is not used again."""
        due = select(Version.id, Version.manifest_uri).where(
            Version.deleted_at < self._kept_until, Version.manifest_uri != GONE
        )
        for row in await self._found(due.order_by(Version.id)):
            exports = await self._found(select(ExportFile.uri).where(ExportFile.version_id == row.id))
            await self._change(
                delete(VersionFile).where(VersionFile.version_id == row.id),
                delete(ExportFile).where(ExportFile.version_id == row.id),
                update(Version).where(Version.id == row.id).values(manifest_uri=GONE, manifest_bytes=0),
            )
            await self._remove([row.manifest_uri, *(export.uri for export in exports)])
            yield f"version {row.id}: deleted"

    async def _builds(self) -> AsyncIterator[str]:
        """Those that score or rank another's samples are younger than it and go first."""
        due = select(Build.id).where(Build.deleted_at < self._kept_until).order_by(Build.id.desc())
        for row in await self._found(due):
            async with self._database.begin() as session:
                build = await session.get_one(Build, row.id)
                needed = await _needed(session, build.id)
            if not needed:
                await self._purge(build)
                yield f"build {build.id}: deleted"

    async def _purge(self, build: Build) -> None:
        """Batch by batch; the build's own row goes last, so that a sweep that was killed is gone on with."""
        if self._dry:
            return
        if build.of_build_id is None:
            await self._purge_ranges(build, Score, Sample, Spool, Problem)
            await self._purge_files(build.id)
        elif not await self._scores_shared(build):
            await self._purge_ranges(build, Score)
        for table in (Shard, Event):
            first = select(table.id).where(table.build_id == build.id).limit(ROWS)
            while await self._change(delete(table).where(table.id.in_(first))):
                pass
        await self._change(
            update(Version).where(Version.build_id == build.id).values(build_id=None),
            delete(Build).where(Build.id == build.id),
        )

    async def _purge_ranges(self, build: Build, *tables: type[Any]) -> None:
        step = max(1, ROWS // build.n)
        own = [Score.scorer_id == build.scorer_id] if build.of_build_id is not None else []
        for lo in range(0, build.problems + 1, step):
            for table in tables:
                column = Problem.idx if table is Problem else table.problem
                rows = [table.build_id == build.data_id, column >= lo, column < lo + step]
                await self._change(delete(table).where(*rows, *own))

    async def _purge_files(self, build_id: int) -> None:
        query = select(File.id, File.uri).where(File.build_id == build_id).limit(BATCH)
        while rows := await self._found(query):
            await self._change(delete(File).where(File.id.in_([row.id for row in rows])))
            await self._remove([row.uri for row in rows])

    async def _scores_shared(self, build: Build) -> bool:
        """Whether another build, the one that made the samples perhaps, has the same scorer."""
        if build.scorer_id is None:
            return True
        data = or_(Build.of_build_id == build.of_build_id, Build.id == build.of_build_id)
        others = exists().where(data, Build.id != build.id, Build.scorer_id == build.scorer_id)
        return bool((await self._found(select(others)))[0][0])

    async def _uploads(self) -> AsyncIterator[str]:
        used = exists().where(Build.upload_id == Upload.id)
        unused = (Upload.deleted_at.is_(None), Upload.created_at < self._used_until, ~used)
        for row in await self._found(select(Upload.id).where(*unused)):
            if await self._change(update(Upload).where(Upload.id == row.id, *unused).values(deleted_at=func.now())):
                yield f"upload {row.id}: never used, hidden now"
        due = (Upload.deleted_at < self._kept_until, Upload.uri != GONE)
        for row in await self._found(select(Upload.id, Upload.uri).where(*due)):
            this = Upload.id == row.id
            await self._change(delete(Upload).where(this, ~used), update(Upload).where(this).values(uri=GONE))
            await self._remove([row.uri])
            yield f"upload {row.id}: deleted"

    async def _superseded(self) -> AsyncIterator[str]:
        """Files of ended builds whose rows all lie in others by now, and that no version reads."""
        after = 0
        while rows := await self._found(_superseded(after, self._graced_until)):
            after = rows[-1].id
            await self._change(delete(File).where(File.id.in_([row.id for row in rows])))
            await self._remove([row.uri for row in rows])
            for row in rows:
                yield f"{row.uri}: its rows lie in another file"

    async def _unnamed(self) -> AsyncIterator[str]:
        if not await self._names_any():
            log.warning("the database names no file at all: files without a row are left alone")
            return
        entries = self._store.list()
        while batch := await asyncio.to_thread(_batch, entries):
            old = [entry.uri for entry in batch if entry.changed_at < self._graced_until]
            named = {row.uri for row in await self._found(_named(old))} if old else set()
            gone = [uri for uri in old if uri not in named]
            await self._remove(gone)
            for uri in gone:
                yield f"{uri}: no row names it"

    async def _names_any(self) -> bool:
        """A new database beside an old store is a mistake that must not cost the files."""
        return bool((await self._found(select(or_(exists(File.id), exists(Upload.id), exists(Version.id)))))[0][0])

    async def _unfinished(self) -> AsyncIterator[str]:
        for entry in await asyncio.to_thread(lambda: list(self._store.unfinished())):
            if entry.changed_at < self._graced_until:
                if not self._dry:
                    await asyncio.to_thread(self._store.discard, entry)
                yield f"{entry.uri}: an upload that nobody completed"

    async def _found(self, query: Executable) -> Sequence[Row[Any]]:
        async with self._database.begin() as session:
            return (await session.execute(query)).all()

    async def _change(self, *statements: Executable) -> int:
        """In one transaction. Rows that the last one changed; a dry run changes none and says 1."""
        if self._dry:
            return 1
        async with self._database.begin() as session:
            for statement in statements:
                done = await session.execute(statement)
            return rows_changed(done)

    async def _remove(self, uris: Iterable[str]) -> None:
        if not self._dry:
            await asyncio.to_thread(_remove_all, self._store, list(uris))


async def _needed(session: AsyncSession, build_id: int) -> bool:
    """Whether something lives on a deleted build after all, or a row still points at it."""
    derived = exists().where(Build.of_build_id == build_id)
    read = exists().where(VersionFile.file_id == File.id, File.build_id == build_id)
    return bool(await readers(session, build_id) or await session.scalar(select(or_(derived, read))))


def _superseded(after: int, until: datetime) -> Select[int, str]:
    rows = (Sample.build_id == File.build_id, Sample.problem >= File.lo, Sample.problem < File.hi)
    return (
        select(File.id, File.uri)
        .join(Build, Build.id == File.build_id)
        .where(
            File.id > after,
            Build.finished_at < until,
            Build.deleted_at.is_(None),
            ~exists().where(VersionFile.file_id == File.id),
            ~exists().where(*rows, Sample.file_id == File.id),
        )
        .order_by(File.id)
        .limit(BATCH)
    )


def _named(uris: list[str]) -> CompoundSelect[Any]:
    columns = (File.uri, Upload.uri, Version.manifest_uri, ExportFile.uri)
    return union_all(*(select(column.label("uri")).where(column.in_(uris)) for column in columns))


def _batch(entries: Iterator[Entry]) -> list[Entry]:
    return list(islice(entries, BATCH))


def _remove_all(store: Store, uris: list[str]) -> None:
    for uri in uris:
        store.remove(uri)
