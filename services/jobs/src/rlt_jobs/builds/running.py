"""The life of one lease: ask for what is missing, flush as it comes, seal at the end.

No transaction is open across an HTTP call, and no file is touched before the seal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import RLTError, Unavailable
from rlt_jobs.builds import repository, stalls
from rlt_jobs.builds.making import Making, Task
from rlt_jobs.builds.outcomes import Outcome
from rlt_jobs.builds.repository import ScorerKey
from rlt_jobs.builds.rescoring import Rescoring
from rlt_jobs.builds.sampler import Made, Sampler, TeacherUnhealthy, Unhealthy
from rlt_jobs.builds.services import Services, unwrapped
from rlt_jobs.builds.spec import Spec
from rlt_jobs.database import unbroken
from rlt_jobs.leases import Claimed, hold_shard
from rlt_jobs.store.seal import seal
from rlt_service import telemetry

__all__ = ["NotReady", "Run"]

log = logging.getLogger(__name__)

WIND_UP_SECONDS = 30.0  # for what was under way when the teacher fell ill
DATABASE_PAUSE = 0.5  # before asking again a database that went away

T = TypeVar("T")


class NotReady(Unhealthy):
    """A server was not well before anything was asked of it."""


class Run:
    """One lease. It ends early by what `stop` is told."""

    def __init__(self, services: Services, lease: Claimed) -> None:
        self.lease = lease
        self.asked = asyncio.Event()
        """Everything that is missing is under way or waits for its turn."""
        self.stalled = lease.stalled
        """Whether the build was found to be unable to go on, and nothing was made since."""
        self.moved_at = time.monotonic()
        """When a sample was last finished."""
        self.hindered: str | None = None
        """What cannot be written now, and why."""
        self._services = services
        self._settings = services.settings
        self._database = services.database
        self._task: Task = Making(lease)
        self._finished: list[Made] = []
        self._traces = 0
        self._flushed_at = time.monotonic()
        self._enough = asyncio.Event()
        self._scorer: tuple[ScorerKey, int] | None = None
        self._stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop(self, reason: Exception) -> None:
        """End the lease: what is under way is given up, what is finished is kept."""
        if not self._stop.done():
            self._stop.set_exception(reason)

    async def run(self) -> None:
        """Raises whatever ended the lease before its time."""
        try:
            async with self._in_background(self._told):
                await self._work()
        finally:
            self._stop.cancel()

    async def _told(self) -> None:
        await self._stop

    async def _work(self) -> None:
        async with self._database.begin() as session:
            spec = await repository.work_of(session, self.lease)
            rescoring = await Rescoring.open(session, self._services.store, self.lease)
        self._task = rescoring or self._task
        await self._ready(spec)
        try:
            while todo := await self._insist(self._todo):
                async with self._in_background(self._keep_flushing):
                    await self._make_all(self._sampler(spec), todo)
                await self._insist(self._flush)
        except BaseException:  # of a lease that ends early, too, what is finished is kept
            with suppress(Unavailable):
                await unbroken(self._flush())
            raise
        await self._insist(self._end)
        with telemetry.span("seal"), self._services.metrics.seal_seconds.time():
            await self._insist(lambda: seal(self._database, self._services.store, self.lease))

    async def _ready(self, spec: Spec) -> None:
        """Before anything is asked: a lease that finds a server down has changed nothing."""
        for server in self._services.servers.of(spec.kind):
            try:
                await server.ask()
            except RLTError as error:
                server.fell_ill(error)
                raise NotReady(f"{server.name}: {error}") from error

    def _sampler(self, spec: Spec) -> Sampler:
        services = self._services
        return Sampler(spec, services.teacher, services.reward, services.servers.teacher, services.servers.reward)

    async def _todo(self) -> list[tuple[int, int]]:
        async with self._database.begin() as session:
            return await self._task.todo(session)

    async def _end(self) -> None:
        async with self._database.begin() as session:
            await self._task.end(session)

    async def _make_all(self, sampler: Sampler, todo: list[tuple[int, int]]) -> None:
        ill: list[TeacherUnhealthy] = []

        async def make(problem: int, sample_idx: int) -> None:
            try:
                with self._traced(problem, sample_idx):
                    self._finish(await self._patiently(lambda: self._task.make(sampler, problem, sample_idx)))
            except TeacherUnhealthy as error:  # the others under way may still end well
                if not ill:
                    asyncio.get_running_loop().call_later(WIND_UP_SECONDS, _cancel, tasks)
                ill.append(error)

        async with unwrapped(), asyncio.TaskGroup() as group:
            tasks = [group.create_task(make(problem, sample_idx)) for problem, sample_idx in todo]
            asyncio.get_running_loop().call_soon(self.asked.set)  # behind the first step of each
        if ill:
            raise ill[0]

    def _traced(self, problem: int, sample_idx: int) -> AbstractContextManager[object]:
        """A span of its own for the first few: those of all would make a trace that nothing can show."""
        if self._traces == self._settings.traced_samples:
            return telemetry.unrecorded()
        self._traces += 1
        return telemetry.span("sample", problem=problem, sample_idx=sample_idx)

    def _finish(self, made: Made) -> None:
        self._finished.append(made)
        self.moved_at = time.monotonic()
        if len(self._finished) >= self._settings.flush_rows:
            self._enough.set()

    @asynccontextmanager
    async def _in_background(self, task: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
        """Run `task` beside the block; its failure ends the block, the block's end ends it."""
        async with unwrapped(), asyncio.TaskGroup() as group:
            running = group.create_task(task())
            yield
            running.cancel()

    async def _keep_flushing(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.flush_seconds):
                    await self._enough.wait()
            except TimeoutError:
                pass
            self._enough.clear()
            await self._insist(self._flush)

    async def _flush(self) -> None:
        """Write what is finished. What is not committed stays in the list, and writing twice changes nothing."""
        batch = list(self._finished)
        if not batch:
            return
        seconds = time.monotonic() - self._flushed_at
        goes_on = self.stalled and not any(s.down for s in self._services.servers.all)
        metrics = self._services.metrics
        with metrics.flush_seconds.time():
            async with self._database.begin() as session:
                scorer = await self._pinned(session, batch)
                scorer_id = scorer[1] if scorer else await repository.scorer_of(session, self.lease.build_id)
                outcomes: list[Outcome] = [made.outcome for made in batch]
                await self._task.write(session, outcomes, scorer_id=scorer_id, seconds=seconds)
                if scorer_id is None and (why := {each.score.reason or "" for each in outcomes if each.score}):
                    await repository.tell_unscored(session, self.lease.build_id, why)
                if goes_on:
                    await stalls.went_on(session, self.lease.build_id)
        metrics.flush_rows.inc(len(batch))
        self._scorer = scorer  # only once it is committed
        self.stalled = self.stalled and not goes_on
        del self._finished[: len(batch)]
        self._flushed_at = time.monotonic()

    async def _pinned(self, session: AsyncSession, batch: list[Made]) -> tuple[ScorerKey, int] | None:
        """What scored this batch, which must be what scored the build so far. Raises `ScorerChanged`."""
        scorer = self._scorer
        for key in {made.scorer for made in batch if made.scorer is not None}:
            if scorer is None or scorer[0] != key:
                await hold_shard(session, self.lease)  # locks are taken in one order: shard, then build
                scorer = (key, await repository.pin_scorer(session, self.lease.build_id, key))
        return scorer

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """As `_patiently`, a transaction."""
        return await self._patiently(lambda: unbroken(call()))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Again while database or store are away; the lease's renewal decides when that has lasted too long."""
        while True:
            try:
                result = await call()
            except Unavailable as error:
                log.warning("waiting: %s", error)
                self.hindered = str(error)
                await asyncio.sleep(DATABASE_PAUSE)
            else:
                self.hindered = None
                return result


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
