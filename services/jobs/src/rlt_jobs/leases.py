"""Leases: who works on a shard (or imports or publishes a build), proved by a token that no two holders share.

Every write of a holder names its token and locks the row: a holder that was given up can change nothing any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, case, cast, func, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import RLTError
from rlt_client.schemas.builds import BuildState, ShardState
from rlt_jobs.builds.models import Build, Event, Shard
from rlt_jobs.outbox import Message, Queue, enqueue

__all__ = [
    "IMPORT",
    "PUBLISH",
    "SHARD",
    "Claimed",
    "LeaseLost",
    "claim_build",
    "claim_shard",
    "give_back",
    "hold_build",
    "hold_shard",
    "reap",
    "release_build",
    "renew_build",
    "renew_shard",
    "ring_build",
    "ring_shards",
    "unattended",
]

SHARD = "rlt_jobs.shard"
IMPORT = "rlt_jobs.import"
PUBLISH = "rlt_jobs.publish"


class LeaseLost(RLTError):
    """Someone else may hold the lease by now: stop, and write nothing."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A shard that is ours until the lease runs out."""

    shard_id: int
    token: UUID
    build_id: int
    lo: int
    hi: int
    try_: int


def _until(seconds: float) -> ColumnElement[Any]:
    return func.now() + literal(timedelta(seconds=seconds))


async def claim_shard(session: AsyncSession, shard_id: int, *, worker: str, seconds: float) -> Claimed | None:
    """Take a ready shard of a running build under a fresh token; None if there is nothing to take."""
    running = select(Build.id).where(Build.id == Shard.build_id, Build.state == BuildState.running).exists()
    take = (
        update(Shard)
        .where(Shard.id == shard_id, Shard.state == ShardState.ready, running)
        .values(
            state=ShardState.running,
            lease_token=uuid4(),
            lease_until=_until(seconds),
            worker=worker,
            barren=Shard.barren + 1,
        )
        .returning(Shard.id, Shard.lease_token, Shard.build_id, Shard.lo, Shard.hi, Shard.try_)
    )
    row = (await session.execute(take)).one_or_none()
    if row is None or row.lease_token is None:
        return None
    return Claimed(row.id, row.lease_token, row.build_id, row.lo, row.hi, row.try_)


async def renew_shard(session: AsyncSession, lease: Claimed, *, seconds: float) -> BuildState:
    """Prolong the lease and learn the build's state. Raises `LeaseLost`."""
    renewed = (
        update(Shard)
        .where(Shard.id == lease.shard_id, Shard.lease_token == lease.token, Build.id == Shard.build_id)
        .values(lease_until=_until(seconds))
        .returning(Build.state)
    )
    state = await session.scalar(renewed)
    if state is None:
        raise LeaseLost(f"shard {lease.shard_id}")
    return state


async def hold_shard(session: AsyncSession, lease: Claimed) -> None:
    """Lock the shard for this transaction, if it is still ours. Raises `LeaseLost`."""
    ours = (
        select(Shard.id)
        .where(Shard.id == lease.shard_id, Shard.lease_token == lease.token)
        .with_for_update(key_share=True)
    )
    if await session.scalar(ours) is None:
        raise LeaseLost(f"shard {lease.shard_id}")


async def give_back(
    session: AsyncSession, lease: Claimed, *, blameless: bool, max_barren: int, error: str | None = None
) -> None:
    """End the lease and leave the shard as it is, for whoever is rung for it next.

    `blameless`: the lease does not count as one that brought nothing. No error if the lease was lost already.
    """
    await _end_leases(
        session, Shard.lease_token == lease.token, blameless=blameless, max_barren=max_barren, error=error
    )


async def _end_leases(
    session: AsyncSession, which: ColumnElement[bool], *, blameless: bool, max_barren: int, error: str | None
) -> list[tuple[int, int]]:
    """Running shards become ready, or dead. Returns (shard, build) of those that are ready."""
    barren = func.greatest(Shard.barren - 1, 0) if blameless else Shard.barren
    ended = (
        update(Shard)
        .where(Shard.state == ShardState.running, which)
        .values(
            state=case((barren >= max_barren, cast(ShardState.dead, Shard.state.type)), else_=ShardState.ready),
            barren=barren,
            lease_token=None,
            lease_until=None,
            worker=None,
            error=func.coalesce(error, Shard.error),
            rang_at=func.now(),
            tokens_per_s=0,
            samples_per_s=0,
        )
        .returning(Shard.id, Shard.build_id, Shard.state, Shard.error)
    )
    rows = (await session.execute(ended)).all()
    for row in rows:
        if row.state is ShardState.dead:
            detail = f"shard {row.id} was given up after {max_barren} leases without a new sample: {row.error}"
            session.add(Event(build_id=row.build_id, kind="shard_dead", detail=detail))
    return [(row.id, row.build_id) for row in rows if row.state is ShardState.ready]


async def reap(session: AsyncSession, *, max_barren: int) -> int:
    """End expired leases and ring for what they held. Returns how many there were."""
    expired = Shard.lease_until < func.now()
    lost = "the worker fell silent"
    shards = await _end_leases(session, expired, blameless=False, max_barren=max_barren, error=lost)
    await ring_shards(session, Shard.id.in_([shard for shard, _ in shards]))
    return len(shards) + await _reap_builds(session, max_barren)


async def _reap_builds(session: AsyncSession, max_barren: int) -> int:
    """Imports and publishings whose holder fell silent; after too many the build fails."""
    problem = {"type": "given_up", "title": "Given up", "detail": f"{max_barren} workers in a row fell silent at it"}
    too_often = Build.barren >= max_barren
    expired = (
        update(Build)
        .where(Build.lease_until < func.now())
        .values(
            lease_token=None,
            lease_until=None,
            worker=None,
            state=case((too_often, cast(BuildState.failed, Build.state.type)), else_=Build.state),
            error=case((too_often, literal(problem, Build.error.type)), else_=Build.error),
            finished_at=case((too_often, func.now()), else_=Build.finished_at),
        )
        .returning(Build.id, Build.state)
    )
    rows = (await session.execute(expired)).all()
    for row in rows:
        await ring_build(session, row.id, row.state)
    return len(rows)


async def claim_build(
    session: AsyncSession, build_id: int, state: BuildState, *, worker: str, seconds: float
) -> UUID | None:
    """Take a build in `state` that nobody works on; its fresh token, or None."""
    take = (
        update(Build)
        .where(Build.id == build_id, Build.state == state, Build.lease_token.is_(None))
        .values(lease_token=uuid4(), lease_until=_until(seconds), worker=worker, barren=Build.barren + 1)
        .returning(Build.lease_token)
    )
    return await session.scalar(take)


async def renew_build(session: AsyncSession, build_id: int, token: UUID, *, seconds: float) -> None:
    """Raises `LeaseLost`, also where the build was cancelled."""
    renewed = (
        update(Build)
        .where(Build.id == build_id, Build.lease_token == token)
        .values(lease_until=_until(seconds))
        .returning(Build.id)
    )
    if await session.scalar(renewed) is None:
        raise LeaseLost(f"build {build_id}")


async def hold_build(session: AsyncSession, build_id: int, token: UUID) -> Build:
    """Lock the build for this transaction, if it is still ours. Raises `LeaseLost`."""
    ours = select(Build).where(Build.id == build_id, Build.lease_token == token).with_for_update(key_share=True)
    build = await session.scalar(ours)
    if build is None:
        raise LeaseLost(f"build {build_id}")
    return build


async def release_build(session: AsyncSession, build_id: int, token: UUID) -> None:
    free = {"lease_token": None, "lease_until": None, "worker": None, "barren": func.greatest(Build.barren - 1, 0)}
    await session.execute(update(Build).where(Build.id == build_id, Build.lease_token == token).values(free))


async def ring_shards(session: AsyncSession, which: ColumnElement[bool]) -> int:
    """Queue a message for each ready shard of a running build that `which` names."""
    rung = (
        update(Shard)
        .where(which, Shard.state == ShardState.ready, Build.id == Shard.build_id, Build.state == BuildState.running)
        .values(rang_at=func.now())
        .returning(Shard.id, Build.priority)
    )
    rows = (await session.execute(rung)).all()
    await enqueue(session, [Message(Queue.shards, SHARD, row.id, row.priority) for row in sorted(rows)])
    return len(rows)


async def ring_build(session: AsyncSession, build_id: int, state: BuildState) -> None:
    """Queue the message that a build in this state waits for, if it waits for one."""
    messages = {BuildState.importing: (Queue.imports, IMPORT), BuildState.finishing: (Queue.exports, PUBLISH)}
    if state in messages:
        queue, task = messages[state]
        await session.execute(update(Build).where(Build.id == build_id).values(rang_at=func.now()))
        await enqueue(session, [Message(queue, task, build_id)])


async def unattended(session: AsyncSession, *, seconds: float, limit: int) -> int:
    """Ring again for what nobody took within `seconds`: heals a broker that forgot. Returns how many."""
    stale = func.now() - literal(timedelta(seconds=seconds))
    oldest = (
        select(Shard.id)
        .join(Build, Build.id == Shard.build_id)
        .where(Shard.state == ShardState.ready, Shard.rang_at < stale, Build.state == BuildState.running)
        .order_by(Shard.rang_at)
        .limit(limit)
    )
    rung = await ring_shards(session, Shard.id.in_(oldest.scalar_subquery()))
    waiting = or_(Build.state == BuildState.importing, Build.state == BuildState.finishing)
    idle = select(Build.id, Build.state).where(waiting, Build.lease_token.is_(None), Build.rang_at < stale).limit(limit)
    rows = (await session.execute(idle)).all()
    for row in rows:
        await ring_build(session, row.id, row.state)
    return rung + len(rows)
