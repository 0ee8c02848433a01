"""Several replicas share one queue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlt_reward_server.scheduler.health import Health


async def test_no_replica_is_idle_while_there_is_work(engine: Any, work: Any, results: Any, until: Any) -> None:
    engine.go.clear()
    async with engine.scheduler(replicas=3, window=0, most=10) as scheduler:
        task = asyncio.create_task(results(scheduler, work(1, 2, 3, 4)))
        await until(lambda: len(engine.batches) == 3)
        assert sorted(engine.ran_on) == [0, 1, 2]
        assert scheduler.waiting == 1
        assert scheduler.running_for is not None
        engine.go.set()
        assert await task == [2, 3, 4, 5]
    assert engine.threads == {"scorer-0", "scorer-1", "scorer-2"}


async def test_work_is_shared_out(engine: Any, work: Any, results: Any, until: Any) -> None:
    """12 · 10 tokens for two replicas and one batch to come: 40 each, more than the 20 that are enough."""
    engine.go.clear()
    async with engine.scheduler(replicas=2, enough=20, most=1000) as scheduler:
        task = asyncio.create_task(results(scheduler, work(*range(20, 32))))
        await until(lambda: len(engine.batches) == 2)
        oldest_first = sorted(items for _, items in engine.batches)
        assert [len(items) for items in oldest_first] == [4, 3]  # ceil(80 / 3) = 27 tokens for the second
        engine.go.set()
        await task


async def test_one_busy_replica_is_not_a_busy_server(engine: Any, work: Any, results: Any, until: Any) -> None:
    engine.go.clear()
    async with engine.scheduler(replicas=2, window=0) as scheduler:
        task = asyncio.create_task(results(scheduler, work(1)))
        await until(lambda: len(engine.batches) == 1)
        assert scheduler.running_for is None
        engine.go.set()
        await task


async def test_a_broken_replica_costs_nothing_but_time(engine: Any, work: Any, results: Any) -> None:
    """What it could not do the other one does, and it is left alone for a while."""
    engine.broken = {0}
    scheduler = engine.scheduler(replicas=2, window=0, most=10)
    scheduler._health = Health(2, clock=lambda: 0.0)  # its rest does not end
    async with scheduler:
        for n in range(20, 40):
            assert await results(scheduler, work(n, n + 1)) == [n + 1, n + 2]
        assert engine.ran_on.count(0) == 1
        assert scheduler.resting == 1


@pytest.mark.parametrize("resting", [0, 1])
async def test_one_that_rests_keeps_no_work_from_the_other(engine: Any, work: Any, results: Any, resting: int) -> None:
    """Its rest begins while it waits, as when the other one's ends first."""
    async with engine.scheduler(replicas=2, window=0) as scheduler:
        await asyncio.sleep(0.05)  # both wait for work
        for _ in range(10):  # a rest of a minute
            scheduler._health.failed(resting)
        async with asyncio.timeout(30):  # less than the rest
            assert await results(scheduler, work(20)) == [21]
    assert engine.ran_on == [1 - resting]


async def test_a_batch_that_both_replicas_refuse_is_its_own_fault(engine: Any, work: Any, results: Any) -> None:
    engine.broken = {0, 1}
    async with engine.scheduler(replicas=2, window=0) as scheduler:
        assert await results(scheduler, work(20)) == [-1]
        assert sorted(engine.ran_on) == [0, 1]
        engine.broken.clear()
        assert await results(scheduler, work(20)) == [21]  # one of them works on, whatever happened


async def test_a_caller_who_left_is_not_tried_again(engine: Any, work: Any, results: Any, until: Any) -> None:
    engine.broken = {0}
    engine.go.clear()
    async with engine.scheduler(replicas=2, window=0, most=10) as scheduler:
        tasks = [asyncio.create_task(results(scheduler, work(n))) for n in (20, 30, 40)]
        await until(lambda: len(engine.batches) == 2)
        on_first = engine.batches[engine.ran_on.index(0)][1][0]
        tasks[[20, 30, 40].index(on_first)].cancel()
        await asyncio.sleep(0)
        engine.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [items for _, items in engine.batches].count([on_first]) == 1


async def test_stopping_does_not_wait_for_a_replica_that_rests(engine: Any, work: Any, results: Any) -> None:
    engine.broken = {0}
    async with engine.scheduler(replicas=2, window=0, most=10) as scheduler:
        while not scheduler.resting:
            await results(scheduler, work(20, 21))
    assert scheduler.waiting == 0


def test_rests_grow_and_end_with_success() -> None:
    now = 0.0
    health = Health(2, clock=lambda: now)
    health.failed(0)
    assert health.rests_for(0) == 1
    health.failed(0)
    assert health.rests_for(0) == 2
    now = 2.5
    assert health.rests_for(0) == 0
    health.failed(0)
    assert (health.rests_for(0), health.resting) == (4, 1)
    health.worked(0)
    assert (health.rests_for(0), health.resting) == (0, 0)
    for _ in range(30):
        health.failed(0)
    assert health.rests_for(0) == 60


def test_the_last_one_never_rests() -> None:
    alone = Health(1, clock=lambda: 0.0)
    alone.failed(0)
    assert alone.rests_for(0) == 0
    both = Health(2, clock=lambda: 0.0)
    both.failed(0)
    both.failed(1)
    assert [both.rests_for(0), both.rests_for(1)] == [0, 0]
