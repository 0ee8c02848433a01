from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rlt_reward_server.scheduler import Done, Report, Scheduler, Work

Numbers = Scheduler[str, int, int]
UNLUCKY = 13
FAULT = -1


class Engine:
    """Adds one. It keeps what matters of a model: a batch takes as long as the test wants, one at a time a replica."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.ran_on: list[int] = []
        self.reports: list[Report[str]] = []
        self.dropped: list[int] = []
        self.threads: set[str] = set()
        self.broken: set[int] = set()
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Semaphore(0)
        self._noting = threading.Lock()

    def run(self, lane: str, items: list[int], replica: int) -> Sequence[int]:
        with self._noting:  # the same place in both lists, and `batches` last: it is what tests wait for
            self.threads.add(threading.current_thread().name)
            self.ran_on.append(replica)
            self.batches.append((lane, items))
        self.begun.release()
        assert self.go.wait(60)
        if UNLUCKY in items:
            raise ValueError("unlucky")
        return [FAULT if replica in self.broken else item + 1 for item in items]

    def scheduler(self, **options: Any) -> Numbers:
        defaults: dict[str, Any] = {"replicas": 1, "window": 0.01, "enough": 100, "most": 100, "head_start": 5.0}
        return Numbers(
            self.run,
            at_fault=lambda results: set(results) == {FAULT},
            on_batch=self.reports.append,
            on_dropped=self.dropped.append,
            **(defaults | options),
        )


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def work() -> Callable[..., list[Work[str, int]]]:
    def make(*items: int, lane: str = "student", cost: int = 10, **options: Any) -> list[Work[str, int]]:
        return [Work(lane, item, cost, **options) for item in items]

    return make


@pytest.fixture
def results() -> Callable[..., Any]:
    async def wait(scheduler: Numbers, works: list[Work[str, int]]) -> list[int]:
        done: list[Done[int]] = await scheduler.submit(works)
        return [one.result for one in done]

    return wait


@pytest.fixture
def until() -> Callable[..., Any]:
    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 what is waited for has no event
                await asyncio.sleep(0.001)

    return wait
