"""Where a build goes next, decided under a lock of its row."""

from __future__ import annotations

from typing import Final

from sqlalchemy import exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import Conflict
from rlt_client.schemas.builds import BuildKind, BuildState, ShardState
from rlt_client.schemas.common import Problem
from rlt_jobs.builds.models import Build, Event, Shard
from rlt_jobs.builds.stalls import went_on
from rlt_jobs.database import rows_changed
from rlt_jobs.leases import ring_build, ring_shards

__all__ = [
    "ENDED",
    "FRESH",
    "cancel",
    "expect_ended",
    "fail",
    "pause",
    "prioritise",
    "resume",
    "revive",
    "settle",
    "settle_all",
]

FRESH: Final = {"state": ShardState.ready, "barren": 0, "error": None, "rang_at": None, "retry_at": None}
"""Of a shard that is to be worked on once more."""
OPEN = (ShardState.ready, ShardState.running)
ENDED = (BuildState.done, BuildState.failed, BuildState.cancelled)


async def settle(session: AsyncSession, build_id: int) -> BuildState | None:
    """Close a running build whose last shard has ended: to be published, or failed if a shard is dead.

    The lock makes sure that of two shards which end at once, the second sees the first.
    """
    running = (
        select(Build).where(Build.id == build_id, Build.state == BuildState.running).with_for_update(key_share=True)
    )
    build = await session.scalar(running)
    if build is None or await _any_shard(session, build_id, *OPEN):
        return None
    await went_on(session, build_id)
    if await _any_shard(session, build_id, ShardState.dead):
        _fail(build, await _death(session, build_id))
    else:
        build.state = BuildState.finishing
        await session.flush()
        await ring_build(session, build_id, build.state)
    return build.state


async def settle_all(session: AsyncSession) -> None:
    """Settle builds whose shards all ended without anyone noticing: the last one died, or a worker did."""
    open_shard = exists().where(Shard.build_id == Build.id, Shard.state.in_(OPEN))
    stuck = select(Build.id).where(Build.state == BuildState.running, ~open_shard)
    for build_id in (await session.scalars(stuck)).all():
        await settle(session, build_id)


async def _any_shard(session: AsyncSession, build_id: int, *states: ShardState) -> bool:
    found = select(exists().where(Shard.build_id == build_id, Shard.state.in_(states)))
    return bool(await session.scalar(found))


async def _death(session: AsyncSession, build_id: int) -> Problem:
    dead = select(func.count(), func.max(Shard.error)).where(Shard.build_id == build_id, Shard.state == ShardState.dead)
    count, error = (await session.execute(dead)).one()
    detail = f"{count} shards were given up; one because: {error}. What was made is kept; `resume` tries them again"
    return Problem(type="shards_dead", title="Some samples could not be made", detail=detail)


def _forget_stall(build: Build) -> None:
    """Of a build that runs no more nobody asks why it does not go on."""
    build.stalled_at = build.stalled = None


def _fail(build: Build, problem: Problem) -> None:
    _forget_stall(build)
    build.state = BuildState.failed
    build.error = problem.model_dump(mode="json", exclude_none=True)
    build.lease_token = build.lease_until = build.worker = None
    build.finished_at = func.now()


async def fail(session: AsyncSession, build_id: int, problem: Problem) -> None:
    """End a build that has not ended yet."""
    build = await session.scalar(select(Build).where(Build.id == build_id).with_for_update(key_share=True))
    if build is not None and build.state not in ENDED:
        _fail(build, problem)
        session.add(Event(build_id=build_id, kind="failed", detail=problem.detail or problem.title))


def pause(build: Build) -> None:
    """`build` is locked. Workers notice within a second or so and give their shards back."""
    _expect(build, "paused", BuildState.running, BuildState.paused)
    build.state = BuildState.paused
    _forget_stall(build)


async def resume(session: AsyncSession, build: Build) -> None:
    """`build` is locked. A paused build goes on; of a failed one, what failed is tried again."""
    _expect(build, "resumed", BuildState.paused, BuildState.failed, BuildState.running)
    if build.state is BuildState.running:
        return
    await expect_ended(session, build.of_build_id)
    build.error = build.finished_at = None
    build.barren = 0
    build.state = await _resumed(session, build)
    await revive(session, build)
    await session.flush()
    if build.state is BuildState.running:
        await ring_shards(session, Shard.build_id == build.id)
        await settle(session, build.id)
    else:
        await ring_build(session, build.id, build.state)


async def revive(session: AsyncSession, build: Build) -> int:
    """Dead shards are ready again. Returns how many there are."""
    dead = (Shard.build_id == build.id, Shard.state == ShardState.dead)
    return rows_changed(await session.execute(update(Shard).where(*dead).values(FRESH)))


async def expect_ended(session: AsyncSession, data_id: int | None) -> None:
    """That the samples which another build will read do not change, and will not while this transaction lasts.

    Whoever would run that build again locks it first, and finds its readers then.
    """
    locked = select(Build.state).where(Build.id == data_id).with_for_update(read=True)
    state = None if data_id is None else await session.scalar(locked)
    if state is not None and state not in ENDED:
        raise Conflict(f"build {data_id}, whose samples this one reads, is {state}: wait for its end", type="in_use")


async def _resumed(session: AsyncSession, build: Build) -> BuildState:
    if not await _any_shard(session, build.id, *ShardState):
        return BuildState.finishing if build.kind is BuildKind.rerank else BuildState.importing
    unfinished = await _any_shard(session, build.id, *OPEN, ShardState.dead)
    return BuildState.running if unfinished else BuildState.finishing


def cancel(build: Build) -> None:
    """`build` is locked. Samples that were made stay readable; nothing is published."""
    _expect(build, "cancelled", *(state for state in BuildState if state not in ENDED), BuildState.cancelled)
    if build.state is not BuildState.cancelled:
        build.state = BuildState.cancelled
        _forget_stall(build)
        build.lease_token = build.lease_until = build.worker = None
        build.finished_at = func.now()


async def prioritise(session: AsyncSession, build: Build, priority: int) -> None:
    """`build` is locked. The next claim minds it; a worker is woken, in case none would come soon."""
    _expect(build, "given a priority", *(state for state in BuildState if state not in ENDED))
    build.priority = priority
    await session.flush()
    await ring_shards(session, Shard.build_id == build.id, limit=1)


def _expect(build: Build, verb: str, *states: BuildState) -> None:
    if build.state not in states:
        raise Conflict(f"a build that is {build.state} cannot be {verb}", type="wrong_state")
