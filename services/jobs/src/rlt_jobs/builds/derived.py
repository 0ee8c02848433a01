"""Builds made of what another build left: its samples scored again, or other rows selected from the same scores."""

from __future__ import annotations

from typing import Any

from sqlalchemy import exists, func, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import Conflict, InvalidRequest
from rlt_client.schemas.builds import BuildKind, BuildState, RerankRequest, RescoreRequest
from rlt_client.schemas.common import GenStatus
from rlt_jobs.builds import repository
from rlt_jobs.builds.lifecycle import expect_ended
from rlt_jobs.builds.models import Build, Sample, Shard
from rlt_jobs.builds.quotas import admit_build, admit_samples
from rlt_jobs.builds.spec import Spec, digest
from rlt_jobs.database import Database
from rlt_jobs.leases import ring_build, ring_shards
from rlt_jobs.settings import Settings
from rlt_jobs.store import lineage
from rlt_jobs.store import repository as stored
from rlt_jobs.store.models import File
from rlt_jobs.store.selecting import check_selection

__all__ = ["DerivedBuilds"]


class DerivedBuilds:
    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database

    async def rerank(self, owner: str, version_id: int, request: RerankRequest, key: str | None) -> int:
        """The id of a build that publishes another selection from the scores that a version was made of.

        Raises:
            NotFound: there is no such version.
            InvalidRequest: the scores lack what the selection asks for.
            Conflict: what the version was made of is no longer there.
        """
        async with self._database.begin() as session:
            version, _, scorer = await stored.find_version(session, version_id, owner)
            of = await self._living(session, version.build_id)
            await expect_ended(session, of.data_id)
            spec = lineage.reward_of(scorer)
            if spec is None and request.selection.weights is not None:
                raise InvalidRequest("these scores do not tell what reward they are", type="component_unavailable")
            if spec is not None:
                check_selection(request.selection, spec)
            build = await self._insert(
                session, of, request, key, kind=BuildKind.rerank, of_version_id=version_id, scorer_id=version.scorer_id
            )
            if build.state is BuildState.importing:
                build.state, build.started_at = BuildState.finishing, func.now()
                await session.flush()
                await ring_build(session, build.id, build.state)
            return build.id

    async def rescore(self, owner: str, build_id: int, request: RescoreRequest, key: str | None) -> int:
        """The id of a build that scores another build's complete samples again.

        Raises:
            NotFound: there is no such build.
            InvalidRequest: the scores will lack what the selection asks for.
            Conflict: its samples may still change, or none is complete.
        """
        check_selection(request.selection, request.spec)
        async with self._database.begin() as session:
            of = await repository.find_build(session, build_id, owner)
            data = await self._living(session, of.data_id)
            await session.refresh(data, with_for_update={"read": True})  # who would run it again waits, and finds this
            await _expect_final(session, data)
            parent = await stored.newest_version(session, of.id)
            build = await self._insert(session, of, request, key, kind=BuildKind.rescore, of_version_id=parent)
            if build.state is BuildState.importing:
                await self._cut(session, build)
            return build.id

    async def _living(self, session: AsyncSession, build_id: int | None) -> Build:
        build = None if build_id is None else await session.get(Build, build_id)
        data = None if build is None else await session.get(Build, build.data_id)
        if build is None or data is None or data.deleted_at is not None:
            raise Conflict("the build that made these samples was deleted", type="build_deleted")
        return build

    async def _insert(
        self,
        session: AsyncSession,
        of: Build,
        request: RerankRequest | RescoreRequest,
        key: str | None,
        *,
        kind: BuildKind,
        **values: Any,
    ) -> Build:
        """A new build in state `importing`, or the one that this key was used for."""
        asked = request.model_dump(mode="json")
        hashed = digest([kind, of.id, values["of_version_id"], asked])
        if asked.get("format") is None:
            asked["format"] = of.spec["format"]
        spec = Spec.model_validate({**of.spec, **asked, "kind": kind})
        build = await repository.insert_build(
            session,
            dataset_id=of.dataset_id,
            owner=of.owner,
            kind=kind,
            n=of.n,
            spec=spec.stored(),
            spec_hash=spec.hash(),
            priority=getattr(request, "priority", of.priority),
            idempotency_key=key,
            request_hash=hashed,
            problems=of.problems,
            of_build_id=of.data_id,
            **values,
        )
        if build is None:
            return await repository.build_of_key(session, of.owner, key, hashed)
        await admit_build(session, self._settings, of.owner, but=build.id)
        return build

    async def _cut(self, session: AsyncSession, build: Build) -> None:
        """Into shards over the other build's problems; ranges without a complete sample get none."""
        step = repository.problems_of_shard(build.problems, build.n, self._settings.shard_samples)
        lo = Sample.problem // step * step
        complete = (Sample.build_id == build.data_id, Sample.gen_status == GenStatus.complete)
        ranges = select(lo.label("lo"), func.count().label("total")).where(*complete).group_by("lo").subquery()
        hi = func.least(ranges.c.lo + step, build.problems)
        cut = select(literal(build.id), ranges.c.lo, hi, ranges.c.total).order_by(ranges.c.lo)
        made = insert(Shard).from_select(["build_id", "lo", "hi", "total"], cut).returning(Shard.id)
        if not (await session.scalars(made)).all():
            raise Conflict("none of its samples is complete: there is nothing to score", type="nothing_to_score")
        await admit_samples(session, self._settings, build)
        build.state, build.started_at = BuildState.running, func.now()
        await session.flush()
        await ring_shards(session, Shard.build_id == build.id)


async def _expect_final(session: AsyncSession, data: Build) -> None:
    """A build that failed after its files were made final, for want of rewards say, is as good as one that is done."""
    if data.state is BuildState.done:
        return
    of_shards = exists().where(Sample.build_id == data.id, Sample.file_id == File.id, File.kind == "shard")
    compact = exists().where(File.build_id == data.id, File.kind == "compact")
    if data.state is not BuildState.failed or not await session.scalar(select(compact & ~of_shards)):
        raise Conflict(f"a build that is {data.state} cannot be scored again: finish it first", type="wrong_state")
