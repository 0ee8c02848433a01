"""What the API does with builds. One request is one transaction."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas import builds as wire
from rlt_client.schemas.builds import BuildProblem, BuildRequest, BuildState, SampleSort
from rlt_jobs import pages
from rlt_jobs.builds import browse, lifecycle, quotas, repository, views
from rlt_jobs.builds.admission import Admission
from rlt_jobs.builds.browse import BuildRow, SampleFilter
from rlt_jobs.builds.dry_run import DryRunner
from rlt_jobs.builds.intake import take_in, tell_duplicates
from rlt_jobs.builds.models import Build, Sample, Score
from rlt_jobs.builds.outcomes import decompress
from rlt_jobs.builds.spec import Spec, request_hash
from rlt_jobs.database import Database
from rlt_jobs.leases import ring_build
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_jobs.store.traces import Traces
from rlt_service.logs import bind

__all__ = ["BuildService"]


class BuildService:
    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._admission = Admission(settings, store)
        self._dry_runner = DryRunner(settings, database, store)

    async def submit(self, owner: str, request: BuildRequest, key: str | None) -> wire.Build:
        """A new build, or the one that this key was used for.

        Raises:
            InvalidRequest: an unknown upload, a path or hub that may not be read, a text that is too long, a trace that
                was cut off, or a key that was used for another request.
            Forbidden, Overloaded: `quota_exceeded`.
        """
        problems = await asyncio.to_thread(self._admission.check, request)
        async with self._database.begin() as session:
            build = await self._insert(session, owner, request, key)
            if build is None:
                build = await repository.build_of_key(session, owner, key, request_hash(request))
            else:
                await quotas.admit_build(session, self._settings, owner, but=build.id)
                await self._begin(session, build, problems, deduplicate=request.deduplicate)
            await session.flush()
            build_id = build.id
            bind(build_id=build_id)
            session.expire_all()  # server-side values are read back
            return await self._view(session, owner, build_id)

    async def _begin(
        self, session: AsyncSession, build: Build, problems: list[BuildProblem], *, deduplicate: bool
    ) -> None:
        """With inline problems it runs at once, else it is imported."""
        if not problems:
            await ring_build(session, build.id, BuildState.importing)
            return
        await take_in(session, build, problems, deduplicate=deduplicate)
        await tell_duplicates(session, build)
        await session.flush()
        await quotas.admit_samples(session, self._settings, build)
        await repository.start(session, build, shard_samples=self._settings.shard_samples)

    async def dry_run(self, owner: str, request: BuildRequest) -> wire.DryRun:
        """Raises `InvalidRequest`, `Unavailable`."""
        return await self._dry_runner.run(owner, request)

    async def _insert(self, session: AsyncSession, owner: str, request: BuildRequest, key: str | None) -> Build | None:
        upload_id = request.source.upload if request.source else None
        if upload_id is not None:
            await self._admission.upload(session, upload_id, owner)
        spec = Spec.of(request)
        return await repository.insert_build(
            session,
            dataset_id=await repository.dataset_id(session, owner, request.dataset),
            owner=owner,
            kind=request.kind,
            n=request.n,
            spec=spec.stored(),
            spec_hash=spec.hash(),
            priority=request.priority,
            idempotency_key=key,
            request_hash=request_hash(request),
            upload_id=upload_id,
        )

    async def get(self, owner: str, build_id: int) -> wire.Build:
        async with self._database.begin() as session:
            return await self._view(session, owner, build_id)

    async def page(
        self, owner: str, state: BuildState | None, dataset: str | None, cursor: str | None, limit: int
    ) -> wire.BuildPage:
        after = pages.decode(cursor, "builds", int)
        async with self._database.begin() as session:
            rows = await browse.builds(
                session, owner, state=state, dataset=dataset, below=after[0] if after else None, limit=limit + 1
            )
            page, more = pages.split(rows, limit)
            items = await self._views(session, page)
        return wire.BuildPage(items=items, next=pages.encode("builds", [items[-1].id]) if more else None)

    async def prioritise(self, owner: str, build_id: int, priority: int) -> wire.Build:
        """Raises `NotFound`, and `Conflict` for a build that has ended."""
        async with self._database.begin() as session:
            build = await repository.lock_build(session, build_id, owner)
            await lifecycle.prioritise(session, build, priority)
            session.expire_all()
            return await self._view(session, owner, build_id)

    async def act(self, owner: str, build_id: int, action: str) -> wire.Build:
        """Pause, resume or cancel. Raises `NotFound`, and `Conflict` where the build's state does not allow it."""
        async with self._database.begin() as session:
            build = await repository.lock_build(session, build_id, owner)
            if action == "resume":
                await lifecycle.resume(session, build)
            else:
                {"pause": lifecycle.pause, "cancel": lifecycle.cancel}[action](build)
            await session.flush()
            session.expire_all()
            return await self._view(session, owner, build_id)

    async def samples(
        self,
        owner: str,
        build_id: int,
        *,
        sort: SampleSort,
        descending: bool,
        wanted: SampleFilter,
        texts: bool,
        cursor: str | None,
        limit: int,
    ) -> wire.SamplePage:
        order = f"{sort.value}{'-' if descending else '+'}"
        kinds: dict[SampleSort, list[type]] = {
            SampleSort.by_index: [],
            SampleSort.by_reward: [float],
            SampleSort.by_length: [int],
        }
        after = pages.decode(cursor, order, *kinds[sort], int, int)
        async with self._database.begin() as session:
            build = await repository.find_build(session, build_id, owner)
            rows = await browse.samples(
                session, build, sort, descending=descending, wanted=wanted, after=after, limit=limit + 1
            )
            page, more = pages.split(rows, limit)
            found = await self._texts(session, build.data_id, page) if texts else {}
        items = [views.sample_view(s, score, found.get((s.problem, s.sample_idx), {})) for s, score in page]
        return wire.SamplePage(
            items=items, next=pages.encode(order, browse.sort_key(sort, *page[-1])) if more else None
        )

    async def _texts(
        self, session: AsyncSession, build_id: int, page: list[tuple[Sample, Score | None]]
    ) -> dict[tuple[int, int], dict[str, Any]]:
        """The texts of samples, from the spool while they lie there, else from their file."""
        keys = [(sample.problem, sample.sample_idx) for sample, _ in page]
        rows = await browse.texts(session, build_id, keys) if keys else []
        places = {(row.uri, row.row) for row in rows if row.uri is not None}
        sealed = await asyncio.to_thread(Traces(self._store).read, places)
        found = {}
        for row in rows:
            texts: dict[str, Any] = {"question": row.question, "answer": row.answer}
            if row.texts is not None:
                texts |= decompress(row.texts).model_dump(include={"explanation", "completion"})
            elif row.uri is not None:
                trace = sealed[row.uri, row.row]
                texts |= {"explanation": trace["explanation"], "completion": trace["completion"]}
            found[row.problem, row.sample_idx] = texts
        return found

    async def events(self, owner: str, build_id: int, cursor: str | None, limit: int) -> wire.EventPage:
        after = pages.decode(cursor, "events", int)
        async with self._database.begin() as session:
            await repository.find_build(session, build_id, owner)
            rows = await browse.events(session, build_id, after[0] if after else 0, limit + 1)
        page, more = pages.split(rows, limit)
        items = [views.event_view(event) for event in page]
        return wire.EventPage(items=items, next=pages.encode("events", [items[-1].id]) if more else None)

    async def _view(self, session: AsyncSession, owner: str, build_id: int) -> wire.Build:
        rows = await browse.builds(session, owner, build_id=build_id)
        if not rows:
            await repository.find_build(session, build_id, owner)  # raises NotFound
        return (await self._views(session, rows))[0]

    async def _views(self, session: AsyncSession, rows: list[BuildRow]) -> list[wire.Build]:
        ids = [row.build.id for row in rows]
        totals = await repository.totals(session, ids)
        notes = await browse.notes(session, ids)
        return [views.build_view(row, totals.get(row.build.id), notes.get(row.build.id)) for row in rows]
