"""Claiming, losing and giving back a shard, against a real Postgres."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select, text, update

from rlt_client.schemas.builds import BuildState, ShardState
from rlt_jobs.builds import lifecycle, repository
from rlt_jobs.builds.models import Build, Event, Shard
from rlt_jobs.database import Database
from rlt_jobs.leases import (
    Claimed,
    LeaseLost,
    claim_build,
    claim_shard,
    give_back,
    hold_build,
    hold_shard,
    reap,
    renew_shard,
    unattended,
)
from rlt_jobs.outbox import Outbox
from rlt_jobs.ringing import ring_next

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def shards(database: Database, build_id: int) -> list[Shard]:
    async with database.begin() as session:
        found = await session.scalars(select(Shard).where(Shard.build_id == build_id).order_by(Shard.lo))
        return list(found)


async def rings(database: Database, shard_id: int) -> int:
    async with database.begin() as session:
        query = select(func.count()).select_from(Outbox).where(Outbox.task == "rlt_jobs.shard", Outbox.ref == shard_id)
        return await session.scalar(query) or 0


async def expire(database: Database, build_id: int) -> None:
    async with database.begin() as session:
        past = text("now() - interval '1 second'")
        await session.execute(update(Shard).where(Shard.build_id == build_id).values(lease_until=past))


async def test_a_build_is_cut_into_shards_and_each_is_rung_for(database: Database, make_build: Any) -> None:
    build_id = await make_build(problems=10, n=3, shard_samples=9)  # 9 // 3 = 3 problems a shard: 3 + 3 + 3 + 1
    cut = await shards(database, build_id)
    assert [(shard.lo, shard.hi, shard.total) for shard in cut] == [(0, 3, 9), (3, 6, 9), (6, 9, 9), (9, 10, 3)]
    assert [await rings(database, shard.id) for shard in cut] == [1, 1, 1, 1]


async def test_more_samples_a_problem_than_a_shard_holds_make_one_problem_a_shard(
    database: Database, make_build: Any
) -> None:
    cut = await shards(database, await make_build(problems=2, n=8, shard_samples=4))
    assert [(shard.lo, shard.hi) for shard in cut] == [(0, 1), (1, 2)]


async def test_of_many_claims_at_once_one_wins(database: Database, make_build: Any, claim: Any) -> None:
    (shard,) = await shards(database, await make_build())
    taken = await asyncio.gather(*(claim(shard.id) for _ in range(8)))
    assert sum(lease is not None for lease in taken) == 1
    assert await claim(shard.id) is None  # and later it is still taken


@pytest.mark.parametrize("state", [BuildState.paused, BuildState.cancelled, BuildState.failed])
async def test_a_shard_of_a_build_that_does_not_run_is_not_claimed(
    database: Database, make_build: Any, claim: Any, state: BuildState
) -> None:
    build_id = await make_build()
    (shard,) = await shards(database, build_id)
    async with database.begin() as session:
        await session.execute(update(Build).where(Build.id == build_id).values(state=state))
    assert await claim(shard.id) is None


async def test_a_heartbeat_prolongs_the_lease_and_brings_the_builds_state(
    database: Database, make_build: Any, claim: Any
) -> None:
    build_id = await make_build()
    (shard,) = await shards(database, build_id)
    lease = await claim(shard.id, seconds=1)
    async with database.begin() as session:
        assert await renew_shard(session, lease, seconds=600) is BuildState.running
        left = select(Shard.lease_until - func.now()).where(Shard.id == shard.id)
        assert await session.scalar(left) == timedelta(seconds=600)
    async with database.begin() as session:
        lifecycle.pause(await session.get_one(Build, build_id))
    async with database.begin() as session:
        assert await renew_shard(session, lease, seconds=600) is BuildState.paused


async def test_a_reaped_lease_is_lost_to_its_holder_and_rung_for(
    database: Database, make_build: Any, claim: Any
) -> None:
    build_id = await make_build()
    (shard,) = await shards(database, build_id)
    first = await claim(shard.id)
    await expire(database, build_id)
    async with database.begin() as session:
        assert await reap(session, max_barren=5) == 1
    assert await rings(database, shard.id) == 2
    second = await claim(shard.id)
    assert second is not None
    assert second.token != first.token
    with pytest.raises(LeaseLost):
        async with database.begin() as session:
            await renew_shard(session, first, seconds=60)
    async with database.begin() as session:  # giving back what is not ours takes it from nobody
        await give_back(session, first, blameless=True, max_barren=5)
        assert await renew_shard(session, second, seconds=60) is BuildState.running


async def test_a_shard_that_is_locked_holds_up_no_other(database: Database, make_build: Any, claim: Any) -> None:
    """By a worker that vanished in mid-transaction; the shard's turn comes when the server has ended that."""
    id = await make_build(problems=2, n=1, shard_samples=1)
    locked, free = [await claim(shard.id) for shard in await shards(database, id)]
    await expire(database, id)
    async with database.begin() as vanished, asyncio.timeout(60):
        await hold_shard(vanished, locked)
        async with database.begin() as session:
            assert await reap(session, max_barren=5) == 1
    states = {shard.id: shard.state for shard in await shards(database, id)}
    assert states == {locked.shard_id: ShardState.running, free.shard_id: ShardState.ready}
    async with database.begin() as session:
        assert await reap(session, max_barren=5) == 1


async def test_who_rings_waits_for_no_shard_that_another_one_claims(database: Database, make_build: Any) -> None:
    """Two workers that each claim a shard that was not rung for, and each ring for the next such shard."""
    id = await make_build(problems=3, n=1, shard_samples=1)
    async with database.begin() as session:
        await session.execute(update(Shard).where(Shard.build_id == id).values(rang_at=None))
    async with database.begin() as one, database.begin() as other, asyncio.timeout(60):
        taken = [await claim_shard(each, None, worker="test", seconds=60) for each in (one, other)]
        assert [lease.lo for lease in taken if lease] == [0, 1]
        await asyncio.gather(ring_next(one, id), ring_next(other, id))
    assert [shard.rang_at is None for shard in await shards(database, id)] == [True, True, False]


async def test_a_live_lease_is_not_reaped(database: Database, make_build: Any, claim: Any) -> None:
    (shard,) = await shards(database, await make_build())
    lease = await claim(shard.id)
    async with database.begin() as session:
        await reap(session, max_barren=5)
        assert await renew_shard(session, lease, seconds=60) is BuildState.running


async def test_a_shard_that_only_kills_its_workers_dies_and_fails_its_build(
    database: Database, make_build: Any, claim: Any
) -> None:
    build_id = await make_build(problems=2, n=1, shard_samples=1)
    poisoned, healthy = await shards(database, build_id)
    for _ in range(3):
        assert await claim(poisoned.id) is not None
        await expire(database, build_id)
        async with database.begin() as session:
            await reap(session, max_barren=3)
    poisoned, healthy = await shards(database, build_id)
    assert (poisoned.state, poisoned.barren, healthy.state) == (ShardState.dead, 3, ShardState.ready)
    assert (await claim(poisoned.id)).shard_id == healthy.id
    async with database.begin() as session:
        await lifecycle.settle_all(session)
        assert (await session.get_one(Build, build_id)).state is BuildState.running  # the other may still be made
        await session.execute(update(Shard).where(Shard.id == healthy.id).values(state=ShardState.done))
    async with database.begin() as session:
        await lifecycle.settle_all(session)
    async with database.begin() as session:
        build = await session.get_one(Build, build_id)
        assert build.state is BuildState.failed
        assert build.error is not None
        assert build.error["type"] == "shards_dead"
        assert "fell silent" in build.error["detail"]
        assert await session.scalar(select(Event.kind).where(Event.build_id == build_id)) == "shard_dead"


async def test_resuming_a_failed_build_revives_its_dead_shards(database: Database, make_build: Any, claim: Any) -> None:
    build_id = await make_build()
    (shard,) = await shards(database, build_id)
    async with database.begin() as session:
        dead = {"state": ShardState.dead, "barren": 5}
        await session.execute(update(Shard).where(Shard.id == shard.id).values(dead))
        await lifecycle.settle_all(session)
    async with database.begin() as session:
        build = await repository.lock_build(session, build_id, "ann")
        assert build.state is BuildState.failed
        await lifecycle.resume(session, build)
    assert await rings(database, shard.id) == 2
    assert await claim(shard.id) is not None


async def test_giving_back_without_blame_never_kills(database: Database, make_build: Any, claim: Any) -> None:
    build_id = await make_build()
    (shard,) = await shards(database, build_id)
    for _ in range(10):
        lease: Claimed = await claim(shard.id)
        async with database.begin() as session:
            await give_back(session, lease, blameless=True, max_barren=2, error="the teacher is down")
    (shard,) = await shards(database, build_id)
    assert (shard.state, shard.barren, shard.error) == (ShardState.ready, 0, "the teacher is down")


async def test_a_build_that_nothing_was_rung_for_lately_is_rung_for_again(
    database: Database, make_build: Any, claim: Any
) -> None:
    build_id = await make_build(problems=3, n=1, shard_samples=1)
    first, second, third = await shards(database, build_id)
    await claim(first.id)

    async def reconcile(*forgotten: int) -> int:
        async with database.begin() as session:
            past = text("now() - interval '1 hour'")
            await session.execute(update(Shard).where(Shard.id.in_(forgotten)).values(rang_at=past))
            return await unattended(session, seconds=60, limit=100)

    assert await reconcile(first.id, second.id) == 0  # the third was rung for just now: whoever comes takes the second
    assert await reconcile(third.id) == 2  # and the first is being worked on
    assert [await rings(database, shard.id) for shard in (first, second, third)] == [1, 2, 2]


async def test_a_build_in_import_or_publication_has_one_holder_too(database: Database, make_build: Any) -> None:
    build_id = await make_build()
    async with database.begin() as session:
        await session.execute(update(Build).where(Build.id == build_id).values(state=BuildState.finishing))

    async def take() -> Any:
        async with database.begin() as session:
            return await claim_build(session, build_id, BuildState.finishing, worker="w", seconds=60)

    tokens = [claimed.token for claimed in await asyncio.gather(*(take() for _ in range(4))) if claimed]
    assert len(tokens) == 1
    async with database.begin() as session:
        assert (await hold_build(session, build_id, tokens[0])).id == build_id
        with pytest.raises(LeaseLost):
            await hold_build(session, build_id, uuid4())
    async with database.begin() as session:
        await session.execute(
            update(Build).where(Build.id == build_id).values(lease_until=text("now() - interval '1 second'"))
        )
        assert await reap(session, max_barren=5) == 1
    assert await take() is not None


async def test_claims_do_not_outlive_their_transaction(database: Database, make_build: Any, claim: Any) -> None:
    (shard,) = await shards(database, await make_build())

    async def die() -> None:
        async with database.begin() as session:
            assert await claim_shard(session, shard.id, worker="w", seconds=60) is not None
            raise RuntimeError("the worker dies before it commits")

    with pytest.raises(RuntimeError):
        await die()
    assert await claim(shard.id) is not None
