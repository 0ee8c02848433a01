"""Collects work from many requests into batches for one thread. Knows nothing of models or HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, Self, TypeVar

from rlt_client.errors import Overloaded, Unavailable

__all__ = ["Batcher", "Done", "Work"]

L = TypeVar("L", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

SHORTEST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0  # the estimate behind a longer one would be worth nothing
RATE_MEMORY: Final = 0.8  # weight of the past in the running estimate of cost per second


@dataclass(frozen=True, slots=True)
class Work(Generic[L, T]):
    """One piece of work. Only pieces of one lane (one model) are run together."""

    lane: L
    item: T
    cost: int


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """A result with the three moments of its life, seconds of `time.perf_counter`."""

    result: R
    enqueued: float
    started: float
    finished: float


@dataclass(slots=True, eq=False)
class _Job(Generic[L, T, R]):
    work: Work[L, T]
    future: asyncio.Future[Done[R]]
    enqueued: float


class Batcher(Generic[L, T, R]):
    """First come, first served, up to `max_cost` a batch; used as `async with`.

    Leaving waits until everything queued has been run. Work whose caller was cancelled leaves the queue at once.

    Args:
        run: called in a thread of its own with a lane and its items; gives one result an item, in order.
        window: seconds that the oldest work waits for company while the batch is not full.
        max_queue: pieces of work waiting at most.
        on_batch: told of each batch after it ran: lane, pieces, cost, seconds.
    """

    def __init__(
        self,
        run: Callable[[L, list[T]], Sequence[R]],
        *,
        window: float,
        max_cost: int,
        max_queue: int,
        on_batch: Callable[[L, int, int, float], None],
    ) -> None:
        self._run = run
        self._window = window
        self._max_cost = max_cost
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._lanes: dict[L, dict[_Job[L, T, R], None]] = {}  # ordered, and a job that is cancelled leaves in O(1)
        self._waiting = 0
        self._waiting_cost = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._rate = 0.0
        self._running_since: float | None = None

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._worker = asyncio.create_task(self._work(), name="batcher")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._arrived.set()
        await self._worker
        self._thread.shutdown()

    @property
    def waiting(self) -> int:
        """Pieces of work in the queue."""
        return self._waiting

    @property
    def running_for(self) -> float | None:
        """Seconds since the batch under way began; None while idle."""
        return None if self._running_since is None else time.perf_counter() - self._running_since

    async def submit(self, works: Sequence[Work[L, T]]) -> list[Done[R]]:
        """Run all of it, in whatever batches; all is queued or nothing.

        Raises:
            Overloaded: the queue is full. `retry_after` is when there will be room.
            Unavailable: the server is stopping.
        """
        if self._closing:
            raise Unavailable("the server is stopping", type="stopping", retry_after=SHORTEST_RETRY_S)
        if self._waiting + len(works) > self._max_queue:
            raise Overloaded(f"{self._waiting} passes are waiting", retry_after=self._retry_after())
        jobs = [self._enqueue(work) for work in works]
        self._arrived.set()
        return await asyncio.gather(*(job.future for job in jobs))  # cancels them all with the caller

    def _enqueue(self, work: Work[L, T]) -> _Job[L, T, R]:
        future: asyncio.Future[Done[R]] = asyncio.get_running_loop().create_future()
        job = _Job(work, future, time.perf_counter())
        self._lanes.setdefault(work.lane, {})[job] = None
        self._waiting += 1
        self._waiting_cost += work.cost
        future.add_done_callback(lambda _: self._leave(job))
        return job

    def _leave(self, job: _Job[L, T, R]) -> None:
        """Out of the queue, if it is still there."""
        lane = self._lanes.get(job.work.lane, {})
        if job in lane:
            del lane[job]
            self._waiting -= 1
            self._waiting_cost -= job.work.cost

    def _retry_after(self) -> float:
        seconds = self._waiting_cost / self._rate if self._rate else SHORTEST_RETRY_S
        return min(max(seconds, SHORTEST_RETRY_S), LONGEST_RETRY_S)

    async def _work(self) -> None:
        while await self._wait_for_batch():
            batch = self._take()
            if batch:
                await self._deliver(batch)

    async def _wait_for_batch(self) -> bool:
        """True when a batch is due; False when there will be none any more."""
        while not self._waiting:
            if self._closing:
                return False
            await self._arrival(None)
        due = self._oldest().enqueued + self._window
        while not self._closing and 0 < self._waiting_cost < self._max_cost:
            left = due - time.perf_counter()
            if left <= 0:
                break
            await self._arrival(left)
        return True

    async def _arrival(self, timeout: float | None) -> None:
        self._arrived.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), timeout)

    def _oldest(self) -> _Job[L, T, R]:
        return min((next(iter(lane)) for lane in self._lanes.values() if lane), key=lambda job: job.enqueued)

    def _take(self) -> list[_Job[L, T, R]]:
        """The oldest work and what follows it in its lane, as much as fits."""
        if not self._waiting:
            return []
        batch: list[_Job[L, T, R]] = []
        cost = 0
        for job in self._lanes[self._oldest().work.lane]:
            if batch and cost + job.work.cost > self._max_cost:
                break
            batch.append(job)
            cost += job.work.cost
        for job in batch:
            self._leave(job)
        return batch

    async def _deliver(self, batch: list[_Job[L, T, R]]) -> None:
        lane, items = batch[0].work.lane, [job.work.item for job in batch]
        started = self._running_since = time.perf_counter()
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, lane, items)
            self._measure(batch, time.perf_counter() - started)
            finished = time.perf_counter()
            for job, result in zip(batch, results, strict=True):
                if not job.future.done():
                    job.future.set_result(Done(result, job.enqueued, started, finished))
        except Exception as error:  # the callers get it; the next batch is not touched by it
            log.exception("a batch failed")
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(error)
        finally:
            self._running_since = None

    def _measure(self, batch: list[_Job[L, T, R]], seconds: float) -> None:
        cost = sum(job.work.cost for job in batch)
        rate = cost / max(seconds, 1e-6)
        self._rate = rate if not self._rate else RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * rate
        self._on_batch(batch[0].work.lane, len(batch), cost, seconds)
