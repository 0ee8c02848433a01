"""Proof that the store holds what the database says, and the database what it promises: `rlt-jobs check`.

Everything is streamed: memory holds the keys of one file and one batch of rows. What is deleted is not looked at, nor
is a number of a build that still changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Select, select

from rlt_client.schemas.common import GenStatus
from rlt_jobs.builds.models import Build, Sample
from rlt_jobs.database import Database
from rlt_jobs.store.counts import check_build, check_orphans
from rlt_jobs.store.files import Damaged, Store, Stored
from rlt_jobs.store.models import ExportFile, File, Upload, Version, VersionFile

__all__ = ["check"]

_KEY = ["build_id", "problem", "sample_idx"]
PAGE = 200  # rows of files and versions read at once
BATCH = 16_384  # rows of a manifest or of an index at once


async def check(database: Database, store: Store) -> AsyncIterator[str]:
    """Everything that is wrong, one line a finding. Raises `Unavailable` where database or store cannot be reached."""
    checker = _Checker(database, store)
    for step in (checker.builds, checker.files, checker.versions, checker.others):
        async for finding in step():
            yield finding


@dataclass(frozen=True, slots=True)
class _Keys:
    """(build, problem, sample) of each row of a file."""

    uri: str
    rows: Sequence[tuple[int, ...]]


class _Checker:
    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store
        self._open: _Keys | None = None

    async def builds(self) -> AsyncIterator[str]:
        async for build in self._pages(select(Build).where(Build.deleted_at.is_(None)), Build.id):
            async for finding in check_build(self._database, build.id):
                yield finding
        async for finding in check_orphans(self._database):
            yield finding

    async def files(self) -> AsyncIterator[str]:
        """Checksums, rows, and that every sample points at its own row."""
        living = select(File).join(Build, Build.id == File.build_id).where(Build.deleted_at.is_(None))
        async for file in self._pages(living, File.id):
            found = await asyncio.to_thread(self._whole, file)
            if isinstance(found, str):
                yield found
                continue
            if len(found.rows) != file.rows:
                yield f"{file.uri}: {len(found.rows)} rows instead of {file.rows}"
            async for finding in self._pointers(file, found.rows):
                yield finding

    def _whole(self, file: File) -> _Keys | str:
        try:
            self._store.verify(Stored(file.uri, file.bytes, file.sha256))
            return self._keys(file.uri)
        except Damaged as error:
            return str(error)

    def _keys(self, uri: str) -> _Keys:
        if self._open is None or self._open.uri != uri:
            try:
                with self._store.open(uri) as file:
                    found = pq.read_table(file, columns=_KEY)
            except (pa.ArrowInvalid, KeyError) as error:
                raise Damaged(f"{uri}: {error}") from error
            self._open = _Keys(uri, list(_tuples(found, _KEY)))
        return self._open

    async def _pointers(self, file: File, keys: Sequence[tuple[int, ...]]) -> AsyncIterator[str]:
        same = (Sample.build_id == file.build_id, Sample.file_id == file.id)
        within = (Sample.problem >= file.lo, Sample.problem < file.hi)
        query = select(Sample.build_id, Sample.problem, Sample.sample_idx, Sample.row).where(*same, *within)
        async with self._database.begin() as session:
            stream = await session.stream(query.execution_options(yield_per=BATCH))
            async for part in stream.partitions():
                for finding in _strangers(file.uri, part, keys):
                    yield finding

    async def versions(self) -> AsyncIterator[str]:
        async for version in self._pages(select(Version).where(Version.deleted_at.is_(None)), Version.id):
            manifest = Stored(version.manifest_uri, version.manifest_bytes, version.manifest_sha256)
            async with self._database.begin() as session:
                linked = select(File).join(VersionFile, VersionFile.file_id == File.id)
                files = {file.id: file for file in await session.scalars(linked.where(_of(version)))}
                build = await session.get(Build, version.build_id) if version.build_id else None
            for finding in _miscounted(version, build):
                yield finding
            lines = self._members(version, manifest, files)
            while (line := await asyncio.to_thread(_next, lines)) is not None:
                yield line

    def _members(self, version: Version, manifest: Stored, files: dict[int, File]) -> Iterator[str]:
        """Each row of the manifest points at the row that it names."""
        name = f"version {version.id}"
        try:
            self._store.verify(manifest)
            with self._store.open(manifest.uri) as file, pq.ParquetFile(file) as parquet:
                if parquet.metadata.num_rows != version.rows:
                    yield f"{name}: its manifest has {parquet.metadata.num_rows} rows instead of {version.rows}"
                for batch in parquet.iter_batches(BATCH, columns=[*_KEY, "row", "file_id"]):
                    yield from self._named(name, _tuples(batch, [*_KEY, "row", "file_id"]), files)
        except (Damaged, pa.ArrowInvalid) as error:
            yield f"{name}: {error}"

    def _named(self, name: str, members: Iterable[tuple[int, ...]], files: dict[int, File]) -> Iterator[str]:
        for file_id, rows in groupby(members, key=itemgetter(4)):
            if file_id not in files:
                yield f"{name}: its manifest names file {file_id}, which the version does not hold"
                continue
            uri = files[file_id].uri
            try:
                keys = self._keys(uri).rows
            except Damaged as error:
                yield f"{name}: {error}"
            else:
                yield from _strangers(f"{name}: {uri}", (row[:4] for row in rows), keys)

    async def others(self) -> AsyncIterator[str]:
        """Exports and uploads: their checksums."""
        uploads = select(Upload).where(Upload.deleted_at.is_(None))
        for query, key in ((select(ExportFile), ExportFile.id), (uploads, Upload.id)):
            async for row in self._pages(query, key):
                try:
                    await asyncio.to_thread(self._store.verify, Stored(row.uri, row.bytes, row.sha256))
                except Damaged as error:
                    yield str(error)

    async def _pages(self, query: Select[Any], key: Any) -> AsyncIterator[Any]:
        """Page by page: no transaction is open while files are read."""
        after: list[Any] = []
        while True:
            async with self._database.begin() as session:
                page = (await session.scalars(query.where(*after).order_by(key).limit(PAGE))).all()
            for row in page:
                yield row
            if len(page) < PAGE:
                return
            after = [key > page[-1].id]


def _next(lines: Iterator[str]) -> str | None:
    return next(lines, None)


def _of(version: Version) -> Any:
    return VersionFile.version_id == version.id


def _tuples(found: pa.Table | pa.RecordBatch, columns: list[str]) -> Iterator[tuple[int, ...]]:
    return zip(*(found[name].to_pylist() for name in columns), strict=True)


def _strangers(where: str, index: Iterable[Sequence[Any]], keys: Sequence[tuple[int, ...]]) -> Iterator[str]:
    """Those of `index` (build, problem, sample, row) that are not what stands in their row."""
    for build, problem, sample, row in index:
        if row is None or not 0 <= row < len(keys) or keys[row] != (build, problem, sample):
            yield f"{where}, row {row} is not sample {problem}.{sample} of build {build}"


def _miscounted(version: Version, build: Build | None) -> Iterator[str]:
    counted = sum(version.counts.get(status.value, 0) for status in GenStatus)
    if build is not None and counted != version.counts["problems"] * build.n:
        expected = f"{version.counts['problems']} × {build.n}"
        yield f"version {version.id}: its counts are of {counted} samples instead of {expected}"
