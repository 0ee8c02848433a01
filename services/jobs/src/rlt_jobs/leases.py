"""Leases: who works on a shard (or imports or publishes a build), proved by a token that no two holders share.

Every write of a holder names its token and locks the row: a holder that was given up can change nothing any more.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, case, cast, func, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import RLTError
from rlt_client.schemas.builds import BuildKind, BuildState, ShardState
from rlt_jobs.builds.models import Build, Event, Shard
from rlt_jobs.ringing import IMPORT, PUBLISH, SHARD, ring_build, ring_shards, unattended

__all__ = [
    "IMPORT",
    "PUBLISH",
    "SHARD",
    "Claimed",
    "ClaimedBuild",
    "LeaseLost",
    "claim_build",
    "claim_shard",
    "give_back",
    "hold_build",
    "hold_shard",
    "one_at_a_time",
    "reap",
    "release_build",
    "renew_build",
    "renew_shard",
    "ring_build",
    "ring_shards",
    "unattended",
    "until",
]

log = logging.getLogger(__name__)

_QUOTA_LOCK: Final = 0x524C54  # first of the two keys of an advisory lock; the second is the owner's hash
SILENT: Final = "the worker fell silent"
LONGEST_PAUSE: Final = 60.0  # seconds; of a shard that brought nothing, doubling with each lease from 2 on
MOST_BARREN: Final = 2**15 - 1  # never reached


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
    stalled: bool = False
    """Whether the build could not go on when this was taken."""
    owner: str = ""
    """Of the build."""
    traceparent: str | None = None
    """Where the build was submitted."""


def until(seconds: float) -> ColumnElement[Any]:
    return func.now() + literal(timedelta(seconds=seconds))


# Few builds are open and few shards run, so both are counted; of the many that are ready one is looked up for each
# build in turn, until one is found that nobody else is taking at this moment. OFFSET 0 keeps it from being asked twice.
_CLAIM = text("""
WITH running AS MATERIALIZED (
    SELECT build_id, count(*) AS leases FROM shards WHERE state = 'running' GROUP BY build_id
), busy AS MATERIALIZED (
    SELECT r.build_id, b.owner, r.leases FROM running r JOIN builds b ON b.id = r.build_id WHERE b.state = 'running'
), open AS MATERIALIZED (
    SELECT b.id, b.owner, b.priority, b.stalled_at, b.traceparent, coalesce(busy.leases, 0) AS leases,
        coalesce(q.running_shards, :most) AS most
    FROM builds b LEFT JOIN busy ON busy.build_id = b.id LEFT JOIN quotas q ON q.owner = b.owner
    WHERE b.state = 'running' AND b.kind = ANY (CAST(:kinds AS build_kind[]))
), first AS (
    SELECT o.owner, o.most, o.stalled_at, o.traceparent, found.id
    FROM (SELECT * FROM open ORDER BY priority DESC, leases, id) o
    CROSS JOIN LATERAL (
        SELECT coalesce(
            (SELECT s.id FROM shards s
             WHERE s.id = :hint AND s.build_id = o.id AND s.state = 'ready'
                 AND (s.retry_at IS NULL OR s.retry_at <= now())
             FOR UPDATE SKIP LOCKED),
            (SELECT s.id FROM shards s
             WHERE s.build_id = o.id AND s.state = 'ready' AND (s.retry_at IS NULL OR s.retry_at <= now())
             ORDER BY s.id LIMIT 1 FOR UPDATE SKIP LOCKED)
        ) AS id OFFSET 0
    ) found
    WHERE found.id IS NOT NULL
        AND (o.most IS NULL OR o.most > (SELECT coalesce(sum(leases), 0) FROM busy WHERE busy.owner = o.owner))
    LIMIT 1
)
UPDATE shards s
SET state = 'running', lease_token = gen_random_uuid(), lease_until = now() + make_interval(secs => :seconds),
    worker = :worker, barren = s.barren + 1
FROM first
WHERE s.id = first.id
RETURNING s.id, s.lease_token, s.build_id, s.lo, s.hi, s.try AS try_, first.owner, first.most,
    first.stalled_at, first.traceparent""")
_OWNERS_LEASES = text("""
SELECT count(*) FROM shards s JOIN builds b ON b.id = s.build_id
WHERE s.state = 'running' AND b.state = 'running' AND b.owner = :owner""")


async def claim_shard(
    session: AsyncSession,
    hint: int | None,
    *,
    worker: str,
    seconds: float,
    kinds: Collection[BuildKind] = tuple(BuildKind),
    running_shards: int | None = None,
) -> Claimed | None:
    """Take the best ready shard under a fresh token; None if there is nothing to take.

    That is one of the build with the highest priority, among equals with the fewest running shards, among these the
    oldest; of that build the shard `hint`, if it is there to be had, else the first.

    Args:
        hint: what a message named: workers that are woken together do not meet at one row.
        kinds: builds of other kinds are passed over.
        running_shards: leases an owner may hold at once, where the table of quotas has no other number for it.
    """
    given = {"hint": hint, "worker": worker, "seconds": seconds, "kinds": list(kinds), "most": running_shards}
    row = (await session.execute(_CLAIM, given)).one_or_none()
    if row is None:
        return None
    range_ = (row.lo, row.hi, row.try_, row.stalled_at is not None)
    lease = Claimed(row.id, row.lease_token, row.build_id, *range_, owner=row.owner, traceparent=row.traceparent)
    if row.most is not None and not await _within(session, row.owner, row.most):
        await give_back(session, lease, blameless=True, max_barren=MOST_BARREN)
        return None
    return lease


async def one_at_a_time(session: AsyncSession, owner: str) -> None:
    """Whatever else is weighed against this owner's quotas waits for this transaction: two could pass side by side."""
    await session.execute(select(func.pg_advisory_xact_lock(_QUOTA_LOCK, func.hashtext(owner))))


async def _within(session: AsyncSession, owner: str, most: int) -> bool:
    """Whether this claim keeps the owner's quota: claims at the same moment do not see one another."""
    await one_at_a_time(session, owner)
    return int(await session.scalar(_OWNERS_LEASES, {"owner": owner}) or 0) <= most


async def renew_shard(session: AsyncSession, lease: Claimed, *, seconds: float) -> BuildState:
    """Prolong the lease and learn the build's state. Raises `LeaseLost`."""
    renewed = (
        update(Shard)
        .where(Shard.id == lease.shard_id, Shard.lease_token == lease.token, Build.id == Shard.build_id)
        .values(lease_until=until(seconds))
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
    no_pause = blameless or error == SILENT
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
            rang_at=None,
            retry_at=None if no_pause else func.now() + _pause(),
            tokens_per_s=0,
            samples_per_s=0,
        )
        .returning(Shard.id, Shard.build_id, Shard.state, Shard.error)
    )
    rows = (await session.execute(ended)).all()
    await _lock_builds(session, {row.build_id for row in rows if row.state is ShardState.dead})
    for row in rows:
        ids = {"build_id": row.build_id, "shard_id": row.id}
        if error == SILENT:
            log.warning("lease ended: %s", SILENT, extra=ids)
        if row.state is ShardState.dead:
            log.error("shard given up: %s", row.error, extra=ids)
            detail = f"shard {row.id} was given up after {max_barren} leases without a new sample: {row.error}"
            session.add(Event(build_id=row.build_id, kind="shard_dead", detail=detail))
    return [(row.id, row.build_id) for row in rows if row.state is ShardState.ready]


async def _lock_builds(session: AsyncSession, ids: Collection[int]) -> None:
    """Before events of theirs are written, see `Event`. Locks are taken in one order: shards, then builds by id."""
    if ids:
        locked = select(Build.id).where(Build.id.in_(ids)).order_by(Build.id).with_for_update(key_share=True)
        await session.execute(locked)


def _pause() -> ColumnElement[Any]:
    return func.make_interval(0, 0, 0, 0, 0, 0, func.least(LONGEST_PAUSE, func.power(2, Shard.barren)))


async def reap(session: AsyncSession, *, max_barren: int) -> int:
    """End expired leases and ring for what they held. Returns how many there were.

    A row that is locked is left for the next look: its holder is just writing, or vanished in mid-transaction, and
    nobody else's lease waits for that.
    """
    expired = select(Shard.id).where(Shard.state == ShardState.running, Shard.lease_until < func.now())
    unlocked = Shard.id.in_(expired.with_for_update(skip_locked=True, key_share=True))
    shards = await _end_leases(session, unlocked, blameless=False, max_barren=max_barren, error=SILENT)
    await ring_shards(session, Shard.id.in_([shard for shard, _ in shards]))
    return len(shards) + await _reap_builds(session, max_barren)


async def _reap_builds(session: AsyncSession, max_barren: int) -> int:
    """Imports and publishings whose holder fell silent; after too many the build fails."""
    problem = {"type": "given_up", "title": "Given up", "detail": f"{max_barren} workers in a row fell silent at it"}
    too_often = Build.barren >= max_barren
    silent = select(Build.id).where(Build.lease_until < func.now()).with_for_update(skip_locked=True, key_share=True)
    expired = (
        update(Build)
        .where(Build.id.in_(silent))
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
        log.warning("lease of a build ended: %s", SILENT, extra={"build_id": row.id})
        await ring_build(session, row.id, row.state)
    return len(rows)


@dataclass(frozen=True, slots=True)
class ClaimedBuild:
    """A build that is ours until the lease runs out."""

    token: UUID
    owner: str
    traceparent: str | None


async def claim_build(
    session: AsyncSession, build_id: int, state: BuildState, *, worker: str, seconds: float
) -> ClaimedBuild | None:
    """Take a build in `state` that nobody works on, under a fresh token; None if there is nothing to take."""
    take = (
        update(Build)
        .where(Build.id == build_id, Build.state == state, Build.lease_token.is_(None))
        .values(lease_token=uuid4(), lease_until=until(seconds), worker=worker, barren=Build.barren + 1)
        .returning(Build.lease_token, Build.owner, Build.traceparent)
    )
    row = (await session.execute(take)).one_or_none()
    return None if row is None else ClaimedBuild(row.lease_token, row.owner, row.traceparent)


async def renew_build(session: AsyncSession, build_id: int, token: UUID, *, seconds: float) -> None:
    """Raises `LeaseLost`, also where the build was cancelled."""
    renewed = (
        update(Build)
        .where(Build.id == build_id, Build.lease_token == token)
        .values(lease_until=until(seconds))
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
