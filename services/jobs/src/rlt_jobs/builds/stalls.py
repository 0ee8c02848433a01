"""Builds that cannot go on through no fault of their own: marked, told once, and told again when it is over."""

from __future__ import annotations

import logging
from collections.abc import Collection

from sqlalchemy import exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.builds import BuildKind, BuildState, ShardState
from rlt_jobs.builds.models import Build, Event, Shard

__all__ = ["stall_all", "stall_build", "went_on"]

log = logging.getLogger(__name__)


async def stall_all(session: AsyncSession, kinds: Collection[BuildKind], why: str) -> None:
    """Mark every running build of these kinds that no worker makes samples of, such as when the teacher is down."""
    served = exists().where(
        Shard.build_id == Build.id, Shard.state == ShardState.running, Shard.samples_per_s > 0
    )  # by a worker that reaches what this one does not
    waits = exists().where(Shard.build_id == Build.id, Shard.state.in_((ShardState.ready, ShardState.running)))
    hindered = (Build.state == BuildState.running, Build.kind.in_(kinds), Build.stalled_at.is_(None), waits, ~served)
    for build_id in (await session.scalars(select(Build.id).where(*hindered).order_by(Build.id))).all():
        await stall_build(session, build_id, why)


async def stall_build(session: AsyncSession, build_id: int, why: str) -> None:
    """Mark one running build, unless it is marked: of many workers that find the same, one tells it."""
    free = (Build.id == build_id, Build.state == BuildState.running, Build.stalled_at.is_(None))
    marked = update(Build).where(*free).values(stalled_at=func.now(), stalled=why).returning(Build.id)
    if await session.scalar(marked) is not None:
        session.add(Event(build_id=build_id, kind="stalled", detail=why))
        log.warning("build stalled: %s", why, extra={"build_id": build_id})


async def went_on(session: AsyncSession, build_id: int) -> None:
    """Something was made: end the stall, if there is one."""
    stalled = select(Build).where(Build.id == build_id, Build.stalled_at.is_not(None)).with_for_update(key_share=True)
    build = await session.scalar(stalled)
    if build is None or build.stalled_at is None:
        return
    seconds = await session.scalar(select(func.extract("epoch", func.now() - build.stalled_at)))
    detail = f"it went on after {float(seconds or 0):.0f} s: {build.stalled}"
    build.stalled_at = build.stalled = None
    session.add(Event(build_id=build_id, kind="went_on", detail=detail))
    log.warning("build went on", extra={"build_id": build_id})
