"""The life of one lease: ask for what is missing, flush as it comes, seal at the end.

One event loop holds many requests; a heartbeat renews the lease and brings the build's state back. No transaction is
open across an HTTP call, and no file is touched before the seal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.errors import RLTError, Unavailable
from rlt_client.schemas.builds import BuildKind, BuildState
from rlt_jobs.builds import lifecycle, repository
from rlt_jobs.builds.flow import Flow
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.models import Problem
from rlt_jobs.builds.outcomes import Outcome
from rlt_jobs.builds.repository import ScorerChanged, ScorerKey
from rlt_jobs.builds.sampler import Made, Misconfigured, Sampler, TeacherUnhealthy, Unhealthy
from rlt_jobs.builds.spec import Spec
from rlt_jobs.database import Database, unbroken
from rlt_jobs.leases import Claimed, LeaseLost, claim_shard, give_back, hold_shard, renew_shard
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_jobs.store.seal import seal

__all__ = ["DRAIN_SECONDS", "Services", "Stopped", "unwrapped", "work_shard"]

log = logging.getLogger(__name__)

DRAIN_SECONDS = 0.5  # how soon a worker that is told to stop gives its shard back
WIND_UP_SECONDS = 30.0  # for what was under way when the teacher fell ill
DATABASE_PAUSE = 0.5  # before asking again a database that went away

T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """What a worker process works with."""

    settings: Settings
    database: Database
    store: Store
    teacher: AsyncTeacherClient
    reward: AsyncRewardClient
    worker: str
    draining: Callable[[], bool] = field(default=lambda: False)


class Stopped(RLTError):
    """The lease ends early and nobody is to blame: paused, cancelled, shutting down, or long enough."""


async def work_shard(services: Services, shard_id: int) -> None:
    """Do a shard, if it is there to be taken. Whatever happens, what was flushed stays."""
    if services.draining():
        return
    async with services.database.begin() as session:
        seconds = services.settings.lease_seconds
        lease = await claim_shard(session, shard_id, worker=services.worker, seconds=seconds)
    if lease is None:
        return
    extra = {"shard": shard_id, "build": lease.build_id}
    try:
        await _Run(services, lease).run()
        log.info("shard done", extra=extra)
    except LeaseLost as error:
        log.warning("lease lost: %s", error, extra=extra)
    except Misconfigured as error:
        log.warning("build failed: %s", error, extra=extra)
        async with services.database.begin() as session:
            await lifecycle.fail(session, lease.build_id, error.problem)
        await _end(services, lease, error, blameless=True)
    except (Stopped, NotReady) as error:
        log.info("shard given back: %s", error, extra=extra)
        await _end(services, lease, error, blameless=True)
    except (Unhealthy, ScorerChanged) as error:
        log.warning("shard given back: %s", error, extra=extra)
        await _end(services, lease, error, blameless=False)
    except Exception as error:
        log.exception("shard given back", extra=extra)
        await _end(services, lease, error, blameless=False)


class NotReady(Unhealthy):
    """A server was not well before anything was asked of it."""


async def _end(services: Services, lease: Claimed, error: Exception, *, blameless: bool) -> None:
    async with services.database.begin() as session:
        most = services.settings.max_barren
        reason = f"{type(error).__name__}: {error}"
        await give_back(session, lease, blameless=blameless, max_barren=most, error=reason)


class _Run:
    def __init__(self, services: Services, lease: Claimed) -> None:
        self._services = services
        self._settings = services.settings
        self._database = services.database
        self._lease = lease
        self._finished: list[Made] = []
        self._flushed_at = time.monotonic()
        self._enough = asyncio.Event()
        self._scorer: tuple[ScorerKey, int] | None = None

    async def run(self) -> None:
        async with self._database.begin() as session:
            spec, _ = await repository.work_of(session, self._lease.build_id)
            todo = await repository.missing(session, self._lease)
            problems = await repository.problems(session, self._lease.build_id, self._lease.lo, self._lease.hi)
        await self._ready(spec)
        async with self._kept_alive():
            try:
                async with self._in_background(self._keep_flushing):
                    await self._make_all(self._sampler(spec), problems, todo)
            except BaseException:  # of a lease that ends early, too, what is finished is kept
                with suppress(Unavailable):
                    await unbroken(self._flush())
                raise
            await self._insist(self._flush)
            await self._insist(lambda: seal(self._database, self._services.store, self._lease))

    async def _ready(self, spec: Spec) -> None:
        """Before anything is asked: a lease that finds a server down has changed nothing."""
        clients = [self._services.reward]
        wanted = [*clients, self._services.teacher] if spec.kind is BuildKind.generate else clients
        try:
            await asyncio.gather(*(client.ready() for client in wanted))
        except RLTError as error:
            raise NotReady(str(error)) from error

    def _sampler(self, spec: Spec) -> Sampler:
        most = self._settings.max_in_flight
        teaching = Flow(self._settings.start_in_flight, most)
        scoring = Flow(most, 4 * most)  # scores are cheap beside explanations and must not hold them up
        return Sampler(spec, self._services.teacher, self._services.reward, teaching, scoring)

    async def _make_all(self, sampler: Sampler, problems: dict[int, Problem], todo: list[tuple[int, int]]) -> None:
        ill: list[TeacherUnhealthy] = []

        async def make(problem: int, sample_idx: int) -> None:
            try:
                self._finish(await sampler.make(problems[problem], sample_idx, self._lease.try_))
            except TeacherUnhealthy as error:  # the others under way may still end well
                if not ill:
                    asyncio.get_running_loop().call_later(WIND_UP_SECONDS, _cancel, tasks)
                ill.append(error)

        async with unwrapped(), asyncio.TaskGroup() as group:
            tasks = [group.create_task(make(problem, sample_idx)) for problem, sample_idx in todo]
        if ill:
            raise ill[0]

    def _finish(self, made: Made) -> None:
        self._finished.append(made)
        if len(self._finished) >= self._settings.flush_rows:
            self._enough.set()

    @asynccontextmanager
    async def _kept_alive(self) -> AsyncIterator[None]:
        async with self._in_background(self._beat), self._in_background(self._watch):
            yield

    @asynccontextmanager
    async def _in_background(self, task: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
        """Run `task` beside the block; its failure ends the block, the block's end ends it."""
        async with unwrapped(), asyncio.TaskGroup() as group:
            running = group.create_task(task())
            yield
            running.cancel()

    async def _beat(self) -> None:
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            try:
                state = await unbroken(self._renew())
            except Unavailable as error:
                if time.monotonic() - renewed > self._settings.lease_seconds:
                    raise LeaseLost(f"shard {self._lease.shard_id}: not renewed in time: {error}") from error
                continue
            renewed = time.monotonic()
            if state is not BuildState.running:
                raise Stopped(f"the build is {state}")

    async def _renew(self) -> BuildState:
        async with self._database.begin() as session:
            return await renew_shard(session, self._lease, seconds=self._settings.lease_seconds)

    async def _watch(self) -> None:
        until = time.monotonic() + self._settings.shard_limit_seconds
        while True:
            await asyncio.sleep(DRAIN_SECONDS)
            if self._services.draining():
                raise Stopped("the worker is shutting down")
            if time.monotonic() > until:
                raise Stopped(f"a lease lasts {self._settings.shard_limit_seconds:g} s at most")

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
        async with self._database.begin() as session:
            scorer = await self._pinned(session, batch)
            outcomes: list[Outcome] = [made.outcome for made in batch]
            await flush(session, self._lease, outcomes, scorer_id=scorer[1] if scorer else None, seconds=seconds)
        self._scorer = scorer  # only once it is committed
        del self._finished[: len(batch)]
        self._flushed_at = time.monotonic()

    async def _pinned(self, session: AsyncSession, batch: list[Made]) -> tuple[ScorerKey, int] | None:
        """What scored this batch, which must be what scored the build so far. Raises `ScorerChanged`."""
        scorer = self._scorer
        for key in {made.scorer for made in batch if made.scorer is not None}:
            if scorer is None or scorer[0] != key:
                await hold_shard(session, self._lease)  # locks are taken in one order: shard, then build
                scorer = (key, await repository.pin_scorer(session, self._lease.build_id, key))
        return scorer

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Again while the database is away; the heartbeat decides when that has lasted too long."""
        while True:
            try:
                return await unbroken(call())
            except Unavailable as error:
                log.warning("waiting for the database: %s", error)
                await asyncio.sleep(DATABASE_PAUSE)


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


@asynccontextmanager
async def unwrapped() -> AsyncIterator[None]:
    """The first error of a task group, as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
