"""The embedded engine: generation in this process, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Self

import torch

from rlt_client.errors import InvalidRequest, ItemError, RLTError, Unavailable
from rlt_teacher_server.engine.base import (
    Adapter,
    FullWeights,
    Gauges,
    Limits,
    Sample,
    SampleRequest,
    Watch,
    check,
    with_stops,
)
from rlt_teacher_server.engine.decoding import Decoder, Row
from rlt_teacher_server.errors import Reason, item_error

__all__ = ["TransformersEngine"]

log = logging.getLogger(__name__)

STUCK_S: Final = 300.0  # no forward pass takes this long on a device that works


@dataclass(slots=True, eq=False)
class _Job:
    request: SampleRequest
    future: asyncio.Future[Sample]
    enqueued: float

    @property
    def cost(self) -> int:
        return len(self.request.prompt_token_ids) + self.request.max_tokens


class TransformersEngine:
    """Collects requests into batches and runs one batch after another.

    Args:
        load: makes the decoder; called in the engine's thread.
        max_model_len: tokens of prompt and completion at most.
        eos_token_ids: end every sample, whatever a request says.
        batch_tokens: prompts and budgets of one batch at most; a larger request runs alone.
        window: seconds that an idle engine waits for company.
    """

    def __init__(
        self,
        load: Callable[[], Decoder],
        *,
        max_model_len: int,
        eos_token_ids: tuple[int, ...] = (),
        batch_tokens: int = 32_768,
        window: float = 0.005,
    ) -> None:
        self._load = load
        self._limits = Limits(max_model_len)
        self._eos_token_ids = eos_token_ids
        self._batch_tokens = batch_tokens
        self._window = window
        self._queue: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._stepped = 0.0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        try:
            self._decoder = await self._loop.run_in_executor(self._thread, self._load)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self._worker = asyncio.create_task(self._work(), name="decoder")
        return self

    async def __aexit__(self, *_: object) -> None:
        """What is not finished ends as `Unavailable`: servers drain their requests before this."""
        self._closing = True
        self._arrived.set()
        for job in [*self._queue, *self._running]:
            _fail(job, _stopping())
        await self._worker
        self._thread.shutdown()

    async def connect(self) -> None:
        await self.alive()

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def version(self) -> str | None:
        return f"transformers {version('transformers')}"

    async def gauges(self) -> Gauges:
        return Gauges(len(self._running), len(self._queue))

    async def holds(self) -> FullWeights | None:
        return None

    async def adapters(self) -> frozenset[str]:
        return frozenset()

    async def add(self, adapter: Adapter) -> None:
        raise InvalidRequest(f"{adapter.name}: this engine takes no adapters", type="adapters_unavailable")

    async def remove(self, name: str) -> None:
        """It has none."""

    async def replace(self, weights: FullWeights) -> None:
        raise InvalidRequest(f"{weights.revision}: this engine keeps its weights", type="weights_unavailable")

    async def alive(self) -> None:
        still = time.perf_counter() - self._stepped
        if self._running and still > STUCK_S:
            raise Unavailable(f"no forward pass has ended for {still:.0f} s", type="engine_stuck")

    async def sample(self, request: SampleRequest, watch: Watch | None = None) -> Sample:
        check(request, self._limits)
        if self._closing:
            raise _stopping()
        job = _Job(with_stops(request, self._eos_token_ids), self._loop.create_future(), time.perf_counter())
        self._queue.append(job)
        self._arrived.set()
        sample = await job.future
        if watch is not None:
            watch(sample.token_ids)
        return sample

    async def _work(self) -> None:
        while not self._closing:
            await self._arrived.wait()
            self._arrived.clear()
            if self._queue:
                await asyncio.sleep(self._window)
            while batch := self._take():
                await self._run(batch)

    def _take(self) -> list[_Job]:
        """The oldest requests, as many as fit."""
        batch: list[_Job] = []
        cost = 0
        while self._queue and not (batch and cost + self._queue[0].cost > self._batch_tokens):
            job = self._queue.popleft()
            if not job.future.done():
                batch.append(job)
                cost += job.cost
        return batch

    async def _run(self, batch: list[_Job]) -> None:
        started = time.perf_counter()
        rows = [self._row(job, started) for job in batch]
        self._running, self._stepped = batch, started
        try:
            await self._loop.run_in_executor(self._thread, self._decoder.run, rows, self._step)
        except Exception as error:  # the callers get it; the next batch is not touched by it
            log.exception("a batch failed")
            for job in batch:
                _fail(job, _failure(error))
        finally:
            self._running = []

    def _step(self) -> None:
        self._stepped = time.perf_counter()

    def _row(self, job: _Job, started: float) -> Row:
        def done(reason: str | ItemError) -> None:
            if isinstance(reason, ItemError):
                self._loop.call_soon_threadsafe(_fail, job, reason)
                return
            ended = time.perf_counter()
            sample = Sample(list(row.ids), list(row.logprobs), reason, job.enqueued, started, ended)
            self._loop.call_soon_threadsafe(_deliver, job, sample)

        row = Row(job.request, done, job.future.done)
        return row


def _deliver(job: _Job, sample: Sample) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):  # the caller has gone
        job.future.set_result(sample)


def _fail(job: _Job, error: RLTError) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):
        job.future.set_exception(error)


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", type="stopping", retry_after=1.0)


def _failure(error: Exception) -> ItemError:
    if isinstance(error, torch.OutOfMemoryError):
        return item_error(Reason.out_of_memory, "a smaller --batch-tokens needs less")
    return item_error(Reason.engine_failed, type(error).__name__)
