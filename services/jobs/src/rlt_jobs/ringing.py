"""Messages for shards and builds that wait. They wake workers; which shard is worked on is decided by the claim."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, exists, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.builds import BuildState, ShardState
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.outbox import Message, Queue, enqueue

__all__ = [
    "AHEAD",
    "IMPORT",
    "PUBLISH",
    "SHARD",
    "ring_build",
    "ring_next",
    "ring_shards",
    "ring_stalled",
    "unattended",
]

SHARD = "rlt_jobs.shard"
IMPORT = "rlt_jobs.import"
PUBLISH = "rlt_jobs.publish"
AHEAD: Final = 64
"""Messages of a build that wait at once. Each that brings a worker rings for one more, so that any number of workers
is woken within seconds and a build of a million problems does not fill the queue."""


async def ring_shards(session: AsyncSession, which: ColumnElement[bool], *, limit: int = AHEAD) -> int:
    """Queue a message for the first `limit` ready shards of running builds that `which` names. Returns how many.

    One that is locked is being claimed or rung for; two who waited for each other's would end in a deadlock.
    """
    first = (
        select(Shard.id)
        .join(Build, Build.id == Shard.build_id)
        .where(which, Shard.state == ShardState.ready, Build.state == BuildState.running)
        .order_by(Shard.id)
        .limit(limit)
        .with_for_update(of=Shard, skip_locked=True, key_share=True)
        .cte("first")
    )
    rung = (
        update(Shard)
        .where(Shard.id == first.c.id, Build.id == Shard.build_id)
        .values(rang_at=func.now())
        .returning(Shard.id, Build.priority)
    )
    rows = (await session.execute(rung)).all()
    await enqueue(session, [Message(Queue.shards, SHARD, row.id, row.priority) for row in sorted(rows)])
    return len(rows)


async def ring_next(session: AsyncSession, build_id: int) -> None:
    """In place of a message that brought a worker: one for the build's next shard that was not rung for."""
    await ring_shards(session, (Shard.build_id == build_id) & Shard.rang_at.is_(None), limit=1)


async def ring_build(session: AsyncSession, build_id: int, state: BuildState) -> None:
    """Queue the message that a build in this state waits for, if it waits for one."""
    messages = {BuildState.importing: (Queue.imports, IMPORT), BuildState.finishing: (Queue.exports, PUBLISH)}
    if state in messages:
        queue, task = messages[state]
        await session.execute(update(Build).where(Build.id == build_id).values(rang_at=func.now()))
        await enqueue(session, [Message(queue, task, build_id)])


async def ring_stalled(session: AsyncSession, *, seconds: float) -> int:
    """One message for each stalled build that none was queued for within `seconds`: whoever comes tries again.

    Where shards are being worked on, their holders see by themselves that it goes on.
    """
    recent = exists().where(Shard.build_id == Build.id, _ready(), Shard.rang_at > _ago(seconds))
    worked_on = exists().where(Shard.build_id == Build.id, Shard.state == ShardState.running)
    stalled = (Build.state == BuildState.running, Build.stalled_at.is_not(None), ~recent, ~worked_on)
    builds = (await session.scalars(select(Build.id).where(*stalled).order_by(Build.priority.desc(), Build.id))).all()
    return sum([await ring_shards(session, Shard.build_id == build_id, limit=1) for build_id in builds])


async def unattended(session: AsyncSession, *, seconds: float, limit: int) -> int:
    """Ring again where nothing was rung for within `seconds`: heals a broker that forgot. Returns how many."""
    recently = select(Shard.build_id).where(_ready(), Shard.rang_at > _ago(seconds))
    waits = exists().where(Shard.build_id == Build.id, _ready())
    quiet = (
        select(Build.id).where(Build.state == BuildState.running, waits, Build.id.not_in(recently)).order_by(Build.id)
    )
    rung = 0
    for build_id in (await session.scalars(quiet)).all():
        rung += await ring_shards(session, Shard.build_id == build_id, limit=min(AHEAD, limit - rung))
    waiting = or_(Build.state == BuildState.importing, Build.state == BuildState.finishing)
    idle = select(Build.id, Build.state).where(waiting, Build.lease_token.is_(None), Build.rang_at < _ago(seconds))
    rows = (await session.execute(idle.limit(limit))).all()
    for row in rows:
        await ring_build(session, row.id, row.state)
    return rung + len(rows)


def _ready() -> ColumnElement[bool]:
    """Spelt out, so that the partial indexes serve prepared statements too."""
    return Shard.state == literal(ShardState.ready, Shard.state.type, literal_execute=True)


def _ago(seconds: float) -> ColumnElement[Any]:
    return func.now() - literal(timedelta(seconds=seconds))
