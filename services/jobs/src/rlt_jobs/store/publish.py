"""The end of a build: sealed files become few and sorted, the best samples a manifest, both together a version.

Each file is committed by itself, so a publisher that is killed is followed by one that goes on behind the last
committed file. The version is one row, which a build can have once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Row, func
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import InvalidRequest, Unavailable
from rlt_client.schemas.builds import BuildState
from rlt_client.schemas.common import Problem as ProblemDetails
from rlt_jobs.builds import lifecycle
from rlt_jobs.builds.holding import held_build
from rlt_jobs.builds.models import Build, Scorer
from rlt_jobs.builds.spec import Spec
from rlt_jobs.builds.work import Services, Stopped
from rlt_jobs.leases import hold_build
from rlt_jobs.store import lineage, repository
from rlt_jobs.store.files import Damaged, Stored
from rlt_jobs.store.selecting import members
from rlt_jobs.store.traces import COMPACT, MANIFEST, Traces, open_writer, table

__all__ = ["publish"]

log = logging.getLogger(__name__)

CHUNK = 1_024  # samples in memory at once with their texts, and rows of a row group
PAUSE = 1.0  # before a store or database that is away is tried again
RANKED = 16_384  # samples ranked at once: numbers only


async def publish(services: Services, build_id: int) -> None:
    """Write the build's version, if it waits for that and nobody else is at it."""
    async with held_build(services, build_id, BuildState.finishing) as token:
        if token is not None:
            await _patiently(services, _Publisher(services, build_id, token))


async def _patiently(services: Services, publisher: _Publisher) -> None:
    """Again while the store or the database is away; each try goes on behind the last committed file."""
    until = time.monotonic() + services.settings.shard_limit_seconds
    while True:
        try:
            return await publisher.run()
        except Unavailable as error:
            if time.monotonic() > until:
                raise Stopped(f"publishing waited for too long: {error}") from error
            log.warning("publishing waits: %s", error)
            await asyncio.sleep(PAUSE)
        except Damaged as error:  # nobody else would find it whole
            detail = f"{error}; the samples' scores can be read all the same"
            return await publisher.fail(ProblemDetails(type="store_damaged", title="A file is damaged", detail=detail))


@dataclass(frozen=True, slots=True)
class _Manifest:
    stored: Stored
    rows: int


class _Publisher:
    def __init__(self, services: Services, build_id: int, token: UUID) -> None:
        self._settings = services.settings
        self._database = services.database
        self._store = services.store
        self._reader = Traces(services.store)
        self._id = build_id
        self._token = token

    async def run(self) -> None:
        async with self._database.begin() as session:
            build = await hold_build(session, self._id, self._token)
        if build.of_build_id is None:
            await self._compact(build, max(1, CHUNK // build.n))
        try:
            manifest = await self._select(build, max(1, RANKED // build.n))
        except InvalidRequest as error:
            await self.fail(error.problem())
            return
        if manifest.rows:
            await self._record(build, manifest)
        else:
            await self._nothing_selected(build)

    async def _compact(self, build: Build, step: int) -> None:
        """What lies in shards' files: all at first, and after a retry what it made."""
        hi = 0
        while (lo := await self._uncompacted(hi)) is not None:
            hi = await self._compact_one(lo, build.problems, step)

    async def _uncompacted(self, lo: int) -> int | None:
        async with self._database.begin() as session:
            return await repository.uncompacted(session, self._id, lo)

    async def _compact_one(self, lo: int, end: int, step: int) -> int:
        """Write and commit one file that begins at problem `lo`. Returns where the next begins."""
        uri = f"builds/{self._id}/traces/{lo:09d}-{uuid4().hex}.parquet"
        hi, rows = lo, 0
        with ExitStack() as stack:
            pending = stack.enter_context(self._store.create(uri))
            writer = stack.enter_context(open_writer(pending.writer, COMPACT))
            while hi < end and pending.writer.size < self._settings.compact_bytes:
                traces = await self._traces(hi, min(hi + step, end))
                if traces:  # a group without rows costs its statistics all the same
                    await asyncio.to_thread(writer.write_table, table(traces, COMPACT))
                rows += len(traces)
                hi = min(hi + step, end)
            await asyncio.to_thread(stack.close)
        await self._commit(pending.stored, lo, hi, rows)
        return hi

    async def _traces(self, lo: int, hi: int) -> list[dict[str, Any]]:
        async with self._database.begin() as session:
            found = await repository.written(session, self._id, lo, hi)
        wanted = [(uri, sample.row or 0) for sample, uri, _ in found]
        texts = await asyncio.to_thread(self._reader.read, wanted)
        return [
            {**texts[uri, sample.row or 0], "question": p.question, "answer": p.answer, "system": p.system}
            for sample, uri, p in found
        ]

    async def _commit(self, stored: Stored, lo: int, hi: int, rows: int) -> None:
        async with self._database.begin() as session:
            await hold_build(session, self._id, self._token)
            file_id = await repository.add_file(session, self._id, "compact", lo, hi, rows, stored)
            pointed = await repository.repoint(session, self._id, file_id, lo, hi)
            if pointed != rows:
                raise Damaged(f"build {self._id}: {rows} traces were written and {pointed} samples have one")

    async def _select(self, build: Build, step: int) -> _Manifest:
        selection = Spec.model_validate(build.spec).selection
        async with self._database.begin() as session:
            spec = lineage.reward_of(await self._scorer(session, build))
        rows = 0
        with ExitStack() as stack:
            pending = stack.enter_context(self._store.create(f"datasets/{build.dataset_id}/{uuid4().hex}.parquet"))
            writer = stack.enter_context(open_writer(pending.writer, MANIFEST))
            for lo in range(0, build.problems, step):
                async with self._database.begin() as session:
                    found = await members(session, build.data_id, build.scorer_id, selection, lo, lo + step, spec=spec)
                if found:
                    await asyncio.to_thread(writer.write_table, table(list(map(_member, found)), MANIFEST))
                rows += len(found)
            await asyncio.to_thread(stack.close)
        return _Manifest(pending.stored, rows)

    @staticmethod
    async def _scorer(session: AsyncSession, build: Build) -> Scorer | None:
        return await session.get(Scorer, build.scorer_id) if build.scorer_id else None

    async def _record(self, build: Build, manifest: _Manifest) -> None:
        async with self._database.begin() as session:
            held = await hold_build(session, self._id, self._token)
            files = await repository.files_of(session, build.data_id, "compact")
            scorer = await self._scorer(session, build)
            parent = build.of_version_id or await repository.newest_version(session, self._id)
            version = await repository.add_version(
                session,
                build.dataset_id,
                [file.id for file in files],
                parent_id=parent,
                build_id=self._id,
                selection=build.spec["selection"],
                scorer_id=build.scorer_id,
                manifest_uri=manifest.stored.uri,
                manifest_sha256=manifest.stored.sha256,
                manifest_bytes=manifest.stored.bytes,
                rows=manifest.rows,
                counts=await repository.version_counts(session, build),
                lineage=await lineage.of(session, build, scorer, parent=parent, formats=self._settings.formats),
            )
            held.state = BuildState.done
            held.finished_at = func.now()
            held.lease_token = held.lease_until = held.worker = None
        log.info("version published", extra={"version_id": version.id, "rows": manifest.rows})

    async def _nothing_selected(self, build: Build) -> None:
        async with self._database.begin() as session:
            reason = await repository.why_unscored(session, build)
        detail = (
            "no sample is complete, scored and within the bounds of `selection`; the samples can be read all the same"
        )
        if reason is not None:
            detail += f". {reason}"
        await self.fail(ProblemDetails(type="nothing_selected", title="Nothing to publish", detail=detail))

    async def fail(self, problem: ProblemDetails) -> None:
        async with self._database.begin() as session:
            await hold_build(session, self._id, self._token)
            await lifecycle.fail(session, self._id, problem)


def _member(row: Row[Any]) -> dict[str, Any]:
    found = row._mapping
    return {**{name: found[name] for name in MANIFEST.names}, "flags": sorted(set(found["flags"]))}
