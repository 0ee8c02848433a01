"""The embedded engine: generation in this process, in a thread of its own."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, Self

from rlt_client.errors import ItemError, Unavailable
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
from rlt_teacher_server.engine.batching import Batches
from rlt_teacher_server.engine.decoding import Decoder, Row
from rlt_teacher_server.engine.weights import Loader
from rlt_teacher_server.errors import Reason, item_error

__all__ = ["TransformersEngine"]

STUCK_S: Final = 300.0  # no forward pass takes this long on a device that works


@dataclass(slots=True, eq=False)
class _Job:
    row: Row
    future: asyncio.Future[Sample]
    watch: Watch | None
    enqueued: float
    started: float | None = None
    told: int = 0
    """Tokens that `watch` knows."""

    @property
    def cost(self) -> int:
        return len(self.row.request.prompt_token_ids) + self.row.request.max_tokens

    def sample(self, finish_reason: str) -> Sample:
        assert self.started is not None  # it has been sampled
        row, finished = self.row, time.perf_counter()
        return Sample(row.ids, row.logprobs, finish_reason, self.enqueued, self.started, finished)


@dataclass(frozen=True, slots=True)
class _News:
    """Of one sample after one token."""

    job: _Job
    ids: list[int]
    outcome: Sample | ItemError | None


class TransformersEngine:
    """Generates all that fits at once, oldest requests first; new ones join between two tokens.

    Args:
        loader: makes the decoders.
        weights: the model to start with.
        max_model_len: tokens of prompt and completion at most.
        eos_token_ids: end every sample, whatever a request says.
        batch_tokens: prompts and budgets of what runs at once at most; a larger request runs alone.
        window: seconds that an idle engine waits for company.
    """

    def __init__(
        self,
        loader: Loader,
        weights: FullWeights,
        *,
        max_model_len: int,
        eos_token_ids: tuple[int, ...] = (),
        batch_tokens: int = 32_768,
        window: float = 0.005,
    ) -> None:
        self._loader = loader
        self._weights = weights
        self._limits = Limits(max_model_len)
        self._eos_token_ids = eos_token_ids
        self._batch_tokens = batch_tokens
        self._window = window
        self._adapters: dict[str, Decoder] = {}
        self._loading = asyncio.Lock()
        self._open: set[_Job] = set()
        self._queue: deque[_Job] = deque()
        self._batches = Batches()
        self._arrived = asyncio.Event()
        self._closing = False
        self._running = 0
        self._stepped = 0.0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        try:
            self._base = await self._loop.run_in_executor(self._thread, self._loader.first, self._weights.folder)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self._worker = asyncio.create_task(self._work(), name="decoder")
        return self

    async def __aexit__(self, *_: object) -> None:
        """What is not finished ends as `Unavailable`: servers drain their requests before this."""
        self._closing = True
        self._arrived.set()
        for job in self._open:
            _end(job, _stopping())
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
        return Gauges(self._running, sum(job.started is None for job in self._open))

    async def alive(self) -> None:
        still = time.perf_counter() - self._stepped
        if self._running and still > STUCK_S:
            raise Unavailable(f"no forward pass has ended for {still:.0f} s", type="engine_stuck")

    async def holds(self) -> FullWeights | None:
        return self._weights

    async def adapters(self) -> frozenset[str]:
        return frozenset(self._adapters)

    async def add(self, adapter: Adapter) -> None:
        async with self._loading:
            if adapter.name not in self._adapters:
                adapted = await asyncio.to_thread(self._loader.adapted, self._base, adapter)
                self._adapters[adapter.name] = adapted

    async def remove(self, name: str) -> None:
        async with self._loading:
            self._adapters.pop(name, None)

    async def replace(self, weights: FullWeights) -> None:
        """Both models are in memory for a while. The adapters on the old weights go with them. What this raises leaves
        the old weights and their adapters in use: that is more than an engine must do."""
        async with self._loading:
            self._base = await asyncio.to_thread(self._loader.full, weights, self._base)
            self._weights = weights
            self._adapters = {}
            await asyncio.to_thread(gc.collect)  # modules hold each other in circles: the old ones' memory

    async def sample(self, request: SampleRequest, watch: Watch | None = None) -> Sample:
        check(request, self._limits)
        decoder = self._decoder(request.adapter)
        decoder.refuse_unknown(request.prompt_token_ids)
        if self._closing:
            raise _stopping()
        future: asyncio.Future[Sample] = self._loop.create_future()
        row = Row(with_stops(request, self._eos_token_ids), decoder, future.done)
        job = _Job(row, future, watch, time.perf_counter())
        self._open.add(job)
        self._queue.append(job)
        self._arrived.set()
        try:
            return await future
        finally:
            self._open.discard(job)

    def _decoder(self, adapter: str | None) -> Decoder:
        decoder = self._adapters.get(adapter) if adapter else self._base
        if decoder is None:
            raise item_error(Reason.engine_refused, f"no adapter {adapter} is loaded")
        return decoder

    async def _work(self) -> None:
        while not self._closing:
            await self._arrived.wait()
            self._arrived.clear()
            if self._queue:
                await asyncio.sleep(self._window)
                await self._loop.run_in_executor(self._thread, self._generate)

    def _generate(self) -> None:
        """In the engine's thread, until nothing is left to do: one token for every sample, again and again."""
        jobs: list[_Job] = []
        while (new := self._take(jobs)) or self._batches.size:
            jobs += new
            self._running, self._stepped = self._batches.size + len(new), time.perf_counter()
            self._batches.turn([job.row for job in new])
            self._running = self._batches.size
            self._tell(jobs)
            jobs = [job for job in jobs if job.row.ended is None and not job.row.gone()]

    def _take(self, running: Sequence[_Job]) -> list[_Job]:
        """The oldest requests, as many as fit beside those that run: none overtakes another."""
        taken: list[_Job] = []
        cost = sum(job.cost for job in running)
        while self._queue:
            job = self._queue[0]
            gone = job.row.gone()
            if not gone and not self._fits(job, cost):
                break
            self._queue.popleft()
            if not gone:
                job.started = time.perf_counter()
                taken.append(job)
                cost += job.cost
        return taken

    def _fits(self, job: _Job, cost: int) -> bool:
        return (not cost or cost + job.cost <= self._batch_tokens) and self._batches.takes(job.row.decoder)

    def _tell(self, jobs: Sequence[_Job]) -> None:
        """One wake-up of the event loop for all that happened in one turn, and none where nobody waits for it."""
        news = [_news(job) for job in jobs if job.row.ended is not None or job.watch is not None]
        if news:
            self._loop.call_soon_threadsafe(_deliver, news)


def _news(job: _Job) -> _News:
    row = job.row
    if isinstance(row.ended, ItemError):
        return _News(job, [], row.ended)
    ids = row.ids[job.told :]
    job.told = len(row.ids)
    return _News(job, ids, None if row.ended is None else job.sample(row.ended))


def _deliver(news: Sequence[_News]) -> None:
    for new in news:
        try:
            if new.ids and new.job.watch is not None and not new.job.future.done():
                new.job.watch(new.ids)
        except Exception as error:  # the watcher's own: its caller gets it, the other samples go on
            _end(new.job, error)
        if new.outcome is not None:
            _end(new.job, new.outcome)


def _end(job: _Job, outcome: Sample | Exception) -> None:
    if job.future.done():  # the caller has gone
        return
    if isinstance(outcome, Sample):
        job.future.set_result(outcome)
    else:
        job.future.set_exception(outcome)


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping", type="stopping", retry_after=1.0)
