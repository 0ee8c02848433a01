"""Batches, without any model: the work is numbers, and the thread adds one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rlt_client.errors import Overloaded, Unavailable
from rlt_reward_server.batcher import Batcher, Work

Numbers = Batcher[str, int, int]


class Engine:
    """Adds one. While `hold` is set it waits, as a model does."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.reported: list[tuple[str, int, int]] = []
        self.threads: set[str] = set()
        self.go = threading.Event()
        self.go.set()

    def run(self, lane: str, items: list[int]) -> Sequence[int]:
        self.batches.append((lane, items))
        self.threads.add(threading.current_thread().name)
        assert self.go.wait(10)
        if 13 in items:
            raise ValueError("unlucky")
        return [item + 1 for item in items]

    def report(self, lane: str, pieces: int, cost: int, _seconds: float) -> None:
        self.reported.append((lane, pieces, cost))

    def batcher(self, **options: Any) -> Numbers:
        defaults = {"window": 0.01, "max_cost": 100, "max_queue": 1000}
        return Numbers(self.run, on_batch=self.report, **(defaults | options))


@pytest.fixture
def engine() -> Engine:
    return Engine()


def work(*items: int, lane: str = "student", cost: int = 10) -> list[Work[str, int]]:
    return [Work(lane, item, cost) for item in items]


async def results(batcher: Numbers, works: list[Work[str, int]]) -> list[int]:
    return [done.result for done in await batcher.submit(works)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.001)


async def test_requests_travel_together_and_get_their_own_results(engine: Engine) -> None:
    async with engine.batcher() as batcher:
        assert await asyncio.gather(results(batcher, work(1, 2)), results(batcher, work(3))) == [[2, 3], [4]]
    assert engine.batches == [("student", [1, 2, 3])]
    assert engine.reported == [("student", 3, 30)]
    assert [name.startswith("scorer") for name in engine.threads] == [True]


async def test_a_batch_is_cut_at_the_budget_and_lanes_stay_apart(engine: Engine) -> None:
    async with engine.batcher(max_cost=25) as batcher:
        mixed = [*work(1, 2), *work(7, lane="teacher"), *work(3), *work(8, lane="teacher")]
        assert await results(batcher, mixed) == [2, 3, 8, 4, 9]
    assert engine.batches == [("student", [1, 2]), ("teacher", [7, 8]), ("student", [3])]


async def test_work_over_the_budget_runs_alone(engine: Engine) -> None:
    async with engine.batcher(max_cost=25) as batcher:
        assert await results(batcher, [*work(1), *work(2, cost=500), *work(3)]) == [2, 3, 4]
    assert [items for _, items in engine.batches] == [[1], [2], [3]]


async def test_a_full_batch_does_not_wait_for_the_window(engine: Engine) -> None:
    async with engine.batcher(window=60, max_cost=20) as batcher:
        assert await asyncio.wait_for(results(batcher, work(1, 2)), 5) == [2, 3]


async def test_a_lone_request_waits_no_longer_than_the_window(engine: Engine) -> None:
    async with engine.batcher(window=0.05) as batcher:
        [done] = await batcher.submit(work(1))
    assert 0.05 <= done.started - done.enqueued < 2
    assert done.enqueued <= done.started <= done.finished <= time.perf_counter()


async def test_the_event_loop_turns_while_a_batch_runs(engine: Engine) -> None:
    engine.go.clear()
    async with engine.batcher(window=0) as batcher:
        task = asyncio.create_task(results(batcher, work(1)))
        await until(lambda: batcher.running_for is not None)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not task.done()
        engine.go.set()
        assert await task == [2]
        assert batcher.running_for is None


async def test_work_for_callers_who_left_is_dropped(engine: Engine) -> None:
    engine.go.clear()
    async with engine.batcher(window=0, max_cost=10) as batcher:
        running = asyncio.create_task(results(batcher, work(1)))
        await until(lambda: bool(engine.batches))
        leaving, staying = (asyncio.create_task(results(batcher, work(n, n + 1))) for n in (20, 30))
        await until(lambda: batcher.waiting == 4)
        leaving.cancel()
        await until(lambda: batcher.waiting == 2)
        engine.go.set()
        assert await running == [2]
        assert await staying == [31, 32]
    assert [items for _, items in engine.batches] == [[1], [30], [31]]


async def test_a_caller_who_leaves_while_its_batch_runs_harms_nobody(engine: Engine) -> None:
    engine.go.clear()
    async with engine.batcher() as batcher:
        leaving, staying = (asyncio.create_task(results(batcher, work(n))) for n in (1, 2))
        await until(lambda: bool(engine.batches))
        leaving.cancel()
        engine.go.set()
        assert await staying == [3]


async def test_a_full_queue_is_refused_at_once_and_whole(engine: Engine) -> None:
    engine.go.clear()
    async with engine.batcher(window=0, max_cost=10, max_queue=3) as batcher:
        tasks = [asyncio.create_task(results(batcher, work(1)))]
        await until(lambda: bool(engine.batches))
        tasks.append(asyncio.create_task(results(batcher, work(2, 3))))
        await until(lambda: batcher.waiting == 2)
        with pytest.raises(Overloaded) as caught:
            await batcher.submit(work(4, 5))
        assert batcher.waiting == 2
        assert caught.value.retry_after
        assert 1 <= caught.value.retry_after <= 60
        tasks.append(asyncio.create_task(results(batcher, work(6))))  # there is room for one
        engine.go.set()
        assert await asyncio.gather(*tasks) == [[2], [3, 4], [7]]


async def test_the_wait_is_estimated_from_what_was_measured(engine: Engine) -> None:
    async with engine.batcher(window=0, max_queue=1, max_cost=10) as batcher:
        batcher._rate = 10.0  # tokens a second
        engine.go.clear()
        first = asyncio.create_task(results(batcher, work(1)))
        await until(lambda: bool(engine.batches))
        second = asyncio.create_task(results(batcher, work(2, cost=300)))
        await until(lambda: batcher.waiting == 1)
        with pytest.raises(Overloaded) as caught:
            await batcher.submit(work(3))
        assert caught.value.retry_after == 30  # 300 / 10
        engine.go.set()
        await asyncio.gather(first, second)


async def test_a_batch_that_fails_fails_its_callers_only(engine: Engine) -> None:
    async with engine.batcher(max_cost=10) as batcher:
        bad = asyncio.create_task(batcher.submit(work(13)))
        with pytest.raises(ValueError, match="unlucky"):
            await bad
        assert await results(batcher, work(1)) == [2]
        assert batcher.waiting == 0


async def test_stopping_finishes_what_is_queued_and_takes_nothing_new(engine: Engine) -> None:
    engine.go.clear()
    batcher = engine.batcher(window=60, max_cost=20)
    async with batcher:
        tasks = [asyncio.create_task(results(batcher, work(n))) for n in range(5)]
        await until(lambda: batcher.waiting + 2 * len(engine.batches) == 5)
        asyncio.get_running_loop().call_later(0.01, engine.go.set)
    assert await asyncio.gather(*tasks) == [[1], [2], [3], [4], [5]]
    with pytest.raises(Unavailable) as caught:
        await batcher.submit(work(1))
    assert caught.value.type == "stopping"


async def test_nothing_to_do_is_done(engine: Engine) -> None:
    async with engine.batcher() as batcher:
        assert await batcher.submit([]) == []
    assert engine.batches == []
