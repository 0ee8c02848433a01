"""The end of a build: sealed files become few and sorted, the best samples a manifest, both together a version.

Each file is committed by itself, so a publisher that is killed is followed by one that goes on behind the last
committed file. The version is one row, which a build can have once.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version as installed
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func

from rlt_client.formats import Format, load_formats
from rlt_client.schemas.builds import BuildState
from rlt_client.schemas.common import Problem as ProblemDetails
from rlt_jobs.builds import lifecycle
from rlt_jobs.builds.holding import held_build
from rlt_jobs.builds.models import Build, Sample, Score, Scorer
from rlt_jobs.builds.repository import totals
from rlt_jobs.builds.spec import Spec
from rlt_jobs.builds.work import Services
from rlt_jobs.leases import hold_build
from rlt_jobs.store import repository
from rlt_jobs.store.files import Damaged, Stored
from rlt_jobs.store.traces import COMPACT, MANIFEST, Traces, open_writer, table

__all__ = ["publish"]

log = logging.getLogger(__name__)

CHUNK = 1_024  # samples in memory at once, and rows of a row group


async def publish(services: Services, build_id: int) -> None:
    """Write the build's version, if it waits for that and nobody else is at it."""
    async with held_build(services, build_id, BuildState.finishing) as token:
        if token is not None:
            await _Publisher(services, build_id, token).run()


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
        step = max(1, CHUNK // build.n)
        await self._compact(build, step)
        manifest = await self._select(build, step)
        if manifest.rows:
            await self._record(build, manifest)
        else:
            await self._nothing_selected()

    async def _compact(self, build: Build, step: int) -> None:
        async with self._database.begin() as session:
            lo = await repository.compacted(session, self._id)
        while lo < build.problems:
            lo = await self._compact_one(lo, build.problems, step)

    async def _compact_one(self, lo: int, end: int, step: int) -> int:
        """Write and commit one file that begins at problem `lo`. Returns where the next begins."""
        uri = f"builds/{self._id}/traces/{lo:09d}-{uuid4().hex}.parquet"
        hi, rows = lo, 0
        with ExitStack() as stack:
            pending = stack.enter_context(self._store.create(uri))
            writer = stack.enter_context(open_writer(pending.writer, COMPACT))
            while hi < end and pending.writer.size < self._settings.compact_bytes:
                traces = await self._traces(hi, min(hi + step, end))
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
        rows = 0
        with ExitStack() as stack:
            pending = stack.enter_context(self._store.create(f"datasets/{build.dataset_id}/{uuid4().hex}.parquet"))
            writer = stack.enter_context(open_writer(pending.writer, MANIFEST))
            for lo in range(0, build.problems, step):
                async with self._database.begin() as session:
                    found = await repository.members(session, self._id, build.scorer_id, selection, lo, lo + step)
                if found:
                    await asyncio.to_thread(writer.write_table, table([_member(*row) for row in found], MANIFEST))
                rows += len(found)
            await asyncio.to_thread(stack.close)
        return _Manifest(pending.stored, rows)

    async def _record(self, build: Build, manifest: _Manifest) -> None:
        async with self._database.begin() as session:
            held = await hold_build(session, self._id, self._token)
            files = await repository.files_of(session, self._id, "compact")
            scorer = await session.get(Scorer, build.scorer_id) if build.scorer_id else None
            counted = (await totals(session, [self._id]))[self._id]
            counts = {"problems": build.problems, **counted.gen, "scored": counted.scored}
            version = await repository.add_version(
                session,
                build.dataset_id,
                [file.id for file in files],
                build_id=self._id,
                selection=build.spec["selection"],
                scorer_id=build.scorer_id,
                manifest_uri=manifest.stored.uri,
                manifest_sha256=manifest.stored.sha256,
                manifest_bytes=manifest.stored.bytes,
                rows=manifest.rows,
                counts={**counts, "score_error": counted.score_error},
                lineage=await self._lineage(session, build, scorer),
            )
            held.state = BuildState.done
            held.finished_at = func.now()
            held.lease_token = held.lease_until = held.worker = None
        log.info("version published", extra={"build": self._id, "version": version.id, "rows": manifest.rows})

    async def _lineage(self, session: Any, build: Build, scorer: Scorer | None) -> dict[str, Any]:
        spec = Spec.model_validate(build.spec)
        return {
            "build": build.spec,
            "code": {name: installed(name) for name in ("rlt-jobs", "rlt-client")},
            "format": _format(self._settings.formats, scorer),
            "policy_revisions": await repository.policy_revisions(session, self._id),
            "sampling": spec.sampling.model_dump(mode="json"),
            "seed": spec.seed,
            "upload": str(build.upload_id) if build.upload_id else None,
        }

    async def _nothing_selected(self) -> None:
        detail = "no sample is complete, scored and above `selection.min_reward`; the samples can be read all the same"
        problem = ProblemDetails(type="nothing_selected", title="Nothing to publish", detail=detail)
        async with self._database.begin() as session:
            await hold_build(session, self._id, self._token)
            await lifecycle.fail(session, self._id, problem)


def _member(sample: Sample, score: Score, rank: int) -> dict[str, Any]:
    key = {"build_id": sample.build_id, "problem": sample.problem, "sample_idx": sample.sample_idx, "rank": rank}
    parts = ("reward", "ss_mean", "ss_min", "ss_sum", "kl_mean", "kl_max", "format", "n_answer", "n_think", "flags")
    return {**key, "file_id": sample.file_id, "row": sample.row, **{name: getattr(score, name) for name in parts}}


def _format(folder: Any, scorer: Scorer | None) -> dict[str, Any] | None:
    """The format that the scores were made with; its student part too, where this service knows it."""
    if scorer is None:
        return None
    known = next((found for found in load_formats(folder).values() if found.hash == scorer.format_hash), None)
    student = known.student.model_dump() if isinstance(known, Format) else None
    return {"name": scorer.format_name, "hash": scorer.format_hash, "student": student}
