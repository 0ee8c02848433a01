"""Reading a source into problems: resumable by row, and no row is dropped without a word."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from uuid import UUID

from rlt_client.errors import Forbidden, Overloaded, Unavailable
from rlt_client.formats import load_formats
from rlt_client.schemas.builds import BuildKind, BuildState, Source
from rlt_client.schemas.common import Problem
from rlt_jobs.builds import intake, lifecycle, quotas, repository
from rlt_jobs.builds.holding import held_build
from rlt_jobs.builds.models import Build
from rlt_jobs.builds.sources.opening import Sources, Stored
from rlt_jobs.builds.sources.problems import Batch, ProblemReader, batches
from rlt_jobs.builds.sources.rows import Position, SourceError
from rlt_jobs.builds.spec import Spec
from rlt_jobs.builds.work import Services, Stopped
from rlt_jobs.leases import hold_build
from rlt_jobs.store.models import Upload

__all__ = ["run_import"]

log = logging.getLogger(__name__)


async def run_import(services: Services, build_id: int) -> None:
    """Read the build's source, batch by batch, each in a transaction; then cut it into shards."""
    async with held_build(services, build_id, BuildState.importing) as token:
        if token is not None:
            await _Import(services, build_id, token).run()


class _Import:
    def __init__(self, services: Services, build_id: int, token: UUID) -> None:
        self._services = services
        self._settings = services.settings
        self._build_id = build_id
        self._token = token
        self._sources = Sources(services.settings, services.store)

    async def run(self) -> None:
        """Raises `Stopped` where the store does not answer now: whoever is rung next goes on from there."""
        try:
            await self._read()
        except SourceError as error:
            await self._fail(error.type, str(error))
        except (Forbidden, Overloaded) as error:  # a quota; `resume` tries again
            await self._fail(error.type, error.detail or error.title, title="The build is larger than the quota")
        except Unavailable as error:
            raise Stopped(f"the source cannot be read now: {error}") from error

    async def _read(self) -> None:
        waiting = await self._open()
        while True:
            batch = await asyncio.to_thread(next, waiting)
            if await self._write(batch):
                return

    async def _open(self) -> Iterator[Batch]:
        """The batches that are not written yet."""
        async with self._services.database.begin() as session:
            build = await hold_build(session, self._build_id, self._token)
            spec, source = _source_of(build)
            upload = await session.get(Upload, build.upload_id) if build.upload_id else None
            at = Position(build.import_line, build.import_offset)
            limit = None if source.limit is None else max(0, source.limit - _rows_read(build))
        source = await self._pin(spec, source)
        stored = Stored.of(upload) if upload else None
        formats = load_formats(self._settings.formats)
        reader = ProblemReader(source, spec.kind, formats, spec.format, self._settings.max_text_chars)
        rows = self._sources.rows(source, spec.kind, stored, at)
        return batches(rows, reader, at, most_rows=self._settings.import_batch, limit=limit)

    async def _pin(self, spec: Spec, source: Source) -> Source:
        """Write down which rows the source means, so that a later worker reads the same ones."""
        pinned = await asyncio.to_thread(self._sources.pinned, source)
        if pinned != source:
            async with self._services.database.begin() as session:
                build = await hold_build(session, self._build_id, self._token)
                build.spec = spec.model_copy(update={"source": pinned}).stored()
        return pinned

    async def _write(self, batch: Batch) -> bool:
        """One batch, fenced. Returns whether it was the last."""
        async with self._services.database.begin() as session:
            build = await hold_build(session, self._build_id, self._token)
            deduplicate = Spec.model_validate(build.spec).deduplicate
            await intake.take_in(session, build, batch.problems, deduplicate=deduplicate)
            await intake.tell_bad_rows(session, build, batch.bad)
            build.import_line, build.import_offset = batch.end
            build.barren = 0
            await session.flush()
            if batch.ended:
                await intake.tell_duplicates(session, build)
            if not batch.ended:
                await quotas.admit_so_far(session, self._settings, build)
            if batch.ended and build.problems:
                await quotas.admit_samples(session, self._settings, build)
                await repository.start(session, build, shard_samples=self._settings.shard_samples)
        if batch.ended and not build.problems:
            await self._fail("no_problems", _nothing(build))
        return batch.ended

    async def _fail(self, type: str, detail: str, *, title: str = "The source cannot be used") -> None:
        log.warning("nothing is imported: %s", detail)
        problem = Problem(type=type, title=title, detail=detail)
        async with self._services.database.begin() as session:
            await hold_build(session, self._build_id, self._token)
            await lifecycle.fail(session, self._build_id, problem)


def _source_of(build: Build) -> tuple[Spec, Source]:
    spec = Spec.model_validate(build.spec)
    if spec.source is not None:
        return spec, spec.source
    # accepted before sources were part of the spec, which had their columns
    return spec, Source(upload=build.upload_id, columns=build.spec.get("columns", {}))


def _rows_read(build: Build) -> int:
    dropped = build.duplicates if build.kind is BuildKind.generate else 0
    return build.problems + build.bad_rows + dropped


def _nothing(build: Build) -> str:
    if not build.bad_rows:
        return "the source holds no rows"
    return f"none of the {build.bad_rows} rows is a problem; see the events"
