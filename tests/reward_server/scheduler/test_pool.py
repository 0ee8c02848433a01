"""Batches, without any model: the work is numbers, and a replica adds one."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import Any

import pytest

from rlt_client.errors import Unavailable


async def test_requests_travel_together_and_get_their_own_results(engine: Any, work: Any, results: Any) -> None:
    async with engine.scheduler(window=60, enough=30) as scheduler:
        both = asyncio.gather(results(scheduler, work(1, 2)), results(scheduler, work(3)))
        assert await both == [[2, 3], [4]]
    assert engine.batches == [("student", [1, 2, 3])]
    [report] = engine.reports
    assert (report.lane, report.passes, report.tokens) == ("student", 3, 30)
    assert engine.threads == {"scorer-0"}


async def test_a_batch_is_cut_at_the_budget_and_lanes_stay_apart(engine: Any, work: Any, results: Any) -> None:
    async with engine.scheduler(most=25) as scheduler:
        mixed = [*work(1, 2), *work(7, lane="teacher"), *work(3), *work(8, lane="teacher")]
        assert await results(scheduler, mixed) == [2, 3, 8, 4, 9]
    assert engine.batches == [("student", [1, 2]), ("teacher", [7, 8]), ("student", [3])]


async def test_work_over_the_budget_runs_alone_and_is_not_waited_for(engine: Any, work: Any, results: Any) -> None:
    """What is short goes together; the long one, which is older than 4, is not put off by it."""
    async with engine.scheduler(most=25) as scheduler:
        mixed = [*work(1), *work(2, cost=500), *work(3), *work(4)]
        assert await results(scheduler, mixed) == [2, 3, 4, 5]
    assert [items for _, items in engine.batches] == [[1, 3], [2], [4]]


async def test_a_group_is_counted_by_what_is_run(engine: Any, work: Any, results: Any) -> None:
    """10 + 3 · (10 − 8) = 16 tokens."""
    async with engine.scheduler(most=16) as scheduler:
        assert await results(scheduler, work(1, 2, 3, 4, group="q", shared=8)) == [2, 3, 4, 5]
    assert [report.tokens for report in engine.reports] == [16]


async def test_a_full_batch_does_not_wait_for_the_window(engine: Any, work: Any, results: Any) -> None:
    async with engine.scheduler(window=60, enough=20) as scheduler:
        assert await asyncio.wait_for(results(scheduler, work(1, 2)), 60) == [2, 3]


async def test_a_lone_request_waits_no_longer_than_the_window(engine: Any, work: Any) -> None:
    """By what the replica's thread asks for: a busy machine may wake it later."""
    scheduler, waits = engine.scheduler(window=0.05), []
    wait = scheduler._work.wait

    def noted(seconds: float | None) -> Any:
        waits.append(seconds)
        return wait(seconds)

    scheduler._work.wait = noted
    async with scheduler:
        [done] = await scheduler.submit(work(1))
    assert all(seconds <= 0.05 for seconds in waits if seconds is not None)
    assert done.started - done.enqueued >= 0.05
    assert done.enqueued <= done.started <= done.finished <= time.perf_counter()


async def test_much_work_is_run_in_parts_so_that_some_is_left_for_the_next_batch(
    engine: Any, work: Any, results: Any
) -> None:
    """8 of 10 tokens where 20 are enough: more than twice that waits, so one replica takes a half of what there is."""
    async with engine.scheduler(enough=20, most=1000) as scheduler:
        await results(scheduler, work(*range(20, 28)))
    assert [len(items) for _, items in engine.batches] == [4, 2, 2]


async def test_the_event_loop_turns_while_a_batch_runs(engine: Any, work: Any, results: Any, until: Any) -> None:
    engine.go.clear()
    async with engine.scheduler(window=0) as scheduler:
        task = asyncio.create_task(results(scheduler, work(1)))
        await until(lambda: scheduler.running_for is not None)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not task.done()
        engine.go.set()
        assert await task == [2]
        assert scheduler.running_for is None


async def test_the_next_batch_needs_nothing_of_the_event_loop(engine: Any, work: Any, results: Any) -> None:
    """The loop is held up while two batches run one after the other."""
    engine.go.clear()
    async with engine.scheduler(window=0, most=10) as scheduler:
        task = asyncio.create_task(results(scheduler, work(1, 2, 3)))
        await asyncio.sleep(0)
        engine.go.set()
        for _ in range(3):
            assert engine.begun.acquire(timeout=60)
        assert len(engine.batches) == 3
        assert await task == [2, 3, 4]


async def test_work_for_callers_who_left_is_dropped(engine: Any, work: Any, results: Any, until: Any) -> None:
    engine.go.clear()
    async with engine.scheduler(window=0, most=10) as scheduler:
        running = asyncio.create_task(results(scheduler, work(1)))
        await until(lambda: bool(engine.batches))
        leaving, staying = (asyncio.create_task(results(scheduler, work(n, n + 1))) for n in (20, 30))
        await until(lambda: scheduler.waiting == 4)
        leaving.cancel()
        await until(lambda: scheduler.waiting == 2)
        assert scheduler.waiting_tokens == 20
        engine.go.set()
        assert await running == [2]
        assert await staying == [31, 32]
    assert [items for _, items in engine.batches] == [[1], [30], [31]]
    assert engine.dropped == [2]


async def test_a_caller_who_leaves_while_its_batch_runs_harms_nobody(
    engine: Any, work: Any, results: Any, until: Any
) -> None:
    engine.go.clear()
    async with engine.scheduler() as scheduler:
        leaving, staying = (asyncio.create_task(results(scheduler, work(n))) for n in (1, 2))
        await until(lambda: bool(engine.batches))
        leaving.cancel()
        engine.go.set()
        assert await staying == [3]
    assert engine.dropped == []


async def test_the_wait_is_estimated_from_what_was_measured(engine: Any, work: Any, results: Any, until: Any) -> None:
    async with engine.scheduler(window=0, most=10, replicas=2) as scheduler:
        assert scheduler.retry_after() == 1  # nothing is known yet
        scheduler._rate = 10.0  # tokens a second of one replica
        engine.go.clear()
        first = asyncio.create_task(results(scheduler, work(1, 2)))
        await until(lambda: len(engine.batches) == 2)
        second = asyncio.create_task(results(scheduler, work(3, cost=600)))
        await until(lambda: scheduler.waiting == 1)
        assert scheduler.retry_after() == 30  # 600 / (2 · 10)
        third = asyncio.create_task(results(scheduler, work(3, cost=6000)))
        await until(lambda: scheduler.waiting == 2)
        assert scheduler.retry_after() == 60  # no estimate is worth more
        engine.go.set()
        await asyncio.gather(first, second, third)


async def test_a_batch_that_fails_fails_its_callers_only(engine: Any, work: Any, results: Any) -> None:
    async with engine.scheduler(most=10) as scheduler:
        with pytest.raises(ValueError, match="unlucky"):
            await scheduler.submit(work(13, 14))
        assert await results(scheduler, work(1)) == [2]
        assert scheduler.waiting == 0


async def test_results_that_are_too_few_are_an_error(engine: Any, work: Any) -> None:
    engine.run = lambda lane, items, replica: items[1:]
    async with engine.scheduler() as scheduler:
        with pytest.raises(RuntimeError, match="1 results for 2"):
            await scheduler.submit(work(1, 2))


async def test_stopping_finishes_what_is_queued_and_takes_nothing_new(
    engine: Any, work: Any, results: Any, until: Any
) -> None:
    engine.go.clear()
    scheduler = engine.scheduler(window=60, enough=20, most=20)
    async with scheduler:
        tasks = [asyncio.create_task(results(scheduler, work(n))) for n in range(5)]
        await until(lambda: scheduler.waiting + 2 * len(engine.batches) == 5)
        asyncio.get_running_loop().call_later(0.01, engine.go.set)
    assert await asyncio.gather(*tasks) == [[1], [2], [3], [4], [5]]
    with pytest.raises(Unavailable) as caught:
        await scheduler.submit(work(1))
    assert caught.value.type == "stopping"


async def test_nothing_to_do_is_done(engine: Any) -> None:
    async with engine.scheduler() as scheduler:
        assert await scheduler.submit([]) == []
    assert engine.batches == []


async def test_an_idle_replica_holds_nothing_of_its_last_batch(engine: Any, work: Any, results: Any) -> None:
    """Its lane names models, which may be retired meanwhile."""

    class Lane:
        pass

    lane = Lane()
    alive = weakref.ref(lane)
    async with engine.scheduler() as scheduler:
        assert await results(scheduler, work(1, lane=lane)) == [2]
        engine.batches.clear()
        engine.reports.clear()
        del lane
        async with asyncio.timeout(60):
            while alive() is not None:
                gc.collect()
                await asyncio.sleep(0.01)
