"""Who is served first: priorities, fair share, quotas of running shards, and the few messages that it takes."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from plugins.shards import hold_back
from sqlalchemy import func, select, update

from rlt_client.schemas.builds import BuildKind, ShardState
from rlt_jobs.builds import lifecycle, quotas, repository
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.database import Database
from rlt_jobs.leases import Claimed, claim_shard, give_back
from rlt_jobs.outbox import Outbox
from rlt_jobs.ringing import AHEAD, SHARD

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def take(database: Database, **options: Any) -> Claimed | None:
    async with database.begin() as session:
        return await claim_shard(session, options.pop("hint", None), worker="w", seconds=60, **options)


async def set_priority(database: Database, build_id: int, priority: int) -> None:
    async with database.begin() as session:
        build = await repository.lock_build(session, build_id, "ann")
        await lifecycle.prioritise(session, build, priority)


async def rung(database: Database, build_id: int) -> int:
    async with database.begin() as session:
        mine = select(Shard.id).where(Shard.build_id == build_id)
        query = select(func.count()).select_from(Outbox).where(Outbox.task == SHARD, Outbox.ref.in_(mine))
        return await session.scalar(query) or 0


async def test_a_late_build_of_higher_priority_overtakes_a_large_one(database: Database, make_build: Any) -> None:
    large = await make_build(problems=1_000, n=1, shard_samples=1)
    urgent = await make_build(problems=3, n=1, shard_samples=1)
    await set_priority(database, urgent, 9)
    taken = [await take(database) for _ in range(5)]
    assert [lease and lease.build_id for lease in taken] == [urgent] * 3 + [large] * 2


async def test_a_new_priority_counts_from_the_next_claim_on(database: Database, make_build: Any) -> None:
    first = await make_build(problems=4, n=1, shard_samples=1)
    second = await make_build(problems=4, n=1, shard_samples=1)
    order = [(await take(database)).build_id]  # type: ignore[union-attr]  # there are eight to be had
    await set_priority(database, second, 1)
    order += [(await take(database)).build_id for _ in range(3)]  # type: ignore[union-attr]
    await set_priority(database, first, 2)
    order.append((await take(database)).build_id)  # type: ignore[union-attr]
    assert order == [first, second, second, second, first]


async def test_equal_builds_share_the_workers_however_large_they_are(database: Database, make_build: Any) -> None:
    builds = [await make_build(problems=count, n=1, shard_samples=1) for count in (200, 20, 20)]
    taken = [await take(database) for _ in range(12)]
    assert Counter(lease.build_id for lease in taken if lease) == dict.fromkeys(builds, 4)
    for lease in taken[::3]:  # all of the first end: it is served until it has as many again
        assert lease is not None
        async with database.begin() as session:
            await session.execute(update(Shard).where(Shard.id == lease.shard_id).values(state=ShardState.done))
    assert [lease and lease.build_id for lease in [await take(database) for _ in range(4)]] == [builds[0]] * 4


async def test_claims_at_the_same_moment_take_different_shards(database: Database, make_build: Any) -> None:
    build_id = await make_build(problems=8, n=1, shard_samples=1)
    async with database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
    for hints in ([None] * 4, ids[4:]):
        taken = await asyncio.gather(*(take(database, hint=hint) for hint in hints))
        assert all(taken)
    async with database.begin() as session:
        states = select(Shard.state, func.count()).where(Shard.build_id == build_id).group_by(Shard.state)
        assert [tuple(row) for row in await session.execute(states)] == [(ShardState.running, 8)]


async def test_a_worker_does_the_shard_it_was_woken_for_unless_another_build_comes_first(
    database: Database, make_build: Any
) -> None:
    build_id = await make_build(problems=3, n=1, shard_samples=1)
    async with database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id).order_by(Shard.id))).all()
    first = await take(database, hint=ids[1])
    again = await take(database, hint=ids[1])
    assert first is not None
    assert again is not None
    assert (first.shard_id, again.shard_id) == (ids[1], ids[0])


async def test_kinds_that_cannot_be_worked_on_are_passed_over(database: Database, make_build: Any) -> None:
    await make_build(problems=2, n=1, shard_samples=1)
    score = await make_build(problems=1, n=1, kind="score")
    kinds = (BuildKind.score, BuildKind.rescore)
    lease = await take(database, kinds=kinds)
    assert lease is not None
    assert lease.build_id == score
    assert await take(database, kinds=kinds) is None


async def test_an_owners_quota_of_running_shards_limits_the_claims(database: Database, make_build: Any) -> None:
    mine = await make_build(problems=9, n=1, shard_samples=1)
    taken = await asyncio.gather(*(take(database, running_shards=2) for _ in range(5)))
    assert sum(lease is not None for lease in taken) == 2
    theirs = await make_build(problems=9, n=1, shard_samples=1, owner="bob")
    async with database.begin() as session:
        await quotas.set_quota(session, "bob", running_shards=1)  # an exception to the default
    more = [await take(database, running_shards=2) for _ in range(3)]
    assert [lease and lease.build_id for lease in more] == [theirs, None, None]
    held = next(lease for lease in taken if lease)
    async with database.begin() as session:
        await give_back(session, held, blameless=True, max_barren=5)
        barren = select(func.max(Shard.barren)).where(Shard.build_id == mine, Shard.state == "ready")
        assert await session.scalar(barren) == 0
    lease = await take(database, running_shards=2)
    assert lease is not None
    assert lease.build_id == mine


async def test_few_messages_are_queued_for_a_large_build(
    database: Database, services: Services, make_build: Any
) -> None:
    build_id = await make_build(problems=1_000, n=1, shard_samples=1)
    assert await rung(database, build_id) == AHEAD
    later = datetime.now(UTC) + timedelta(hours=1)
    await hold_back(database, build_id, later, lo=1)  # so that the shift ends with its first shard
    await work_shard(services, 0)
    assert await rung(database, build_id) == AHEAD + 1  # in place of the one that brought the worker
    await work_shard(services, 0)
    assert await rung(database, build_id) == AHEAD + 1  # which found nothing this time


def together(services: Services, count: int) -> list[int]:
    """No explanation is written before so many are asked for. Gives how many were."""
    full, explain, asked = asyncio.Event(), services.teacher.explain, [0]

    async def held(request: Any) -> Any:
        asked[0] += 1
        if asked[0] == count:
            full.set()
        await full.wait()
        return await explain(request)

    services.teacher.explain = held  # type: ignore[method-assign]
    return asked


async def test_one_message_brings_a_worker_that_does_all_there_is(
    database: Database, services: Services, make_build: Any
) -> None:
    builds = [await make_build(problems=6, n=2, shard_samples=4) for _ in range(2)]
    room = services.settings.model_copy(update={"start_in_flight": 24, "max_in_flight": 24})
    together(services, 24)  # a build that was done before would wait to be published, and need this place
    await asyncio.wait_for(work_shard(replace(services, settings=room), 0), 60)
    async with database.begin() as session:
        states = select(Shard.state).where(Shard.build_id.in_(builds)).distinct()
        assert (await session.scalars(states)).all() == [ShardState.done]
        made = select(func.sum(Shard.complete)).where(Shard.build_id.in_(builds))
        assert await session.scalar(made) == 24


async def test_the_head_of_the_next_shard_is_asked_for_under_the_tail_of_the_last(
    services: Services, make_build: Any
) -> None:
    """Four places and shards of three samples: one of the second is under way before any of the first is done."""
    await make_build(problems=6, n=1, shard_samples=3)
    asked = together(services, services.settings.max_in_flight)
    await asyncio.wait_for(work_shard(services, 0), 60)
    assert asked == [6]


async def test_a_build_that_waits_for_import_gets_the_place_of_the_next_shard(
    database: Database, services: Services, make_build: Any
) -> None:
    build_id = await make_build(problems=10, n=4, shard_samples=4)
    other = await make_build(problems=1, n=1)
    async with database.begin() as session:
        await session.execute(update(Build).where(Build.id == other).values(state="importing"))
    await work_shard(services, 0)
    async with database.begin() as session:
        done = select(func.count()).where(Shard.build_id == build_id, Shard.state == "done")
        assert await session.scalar(done) == 1
