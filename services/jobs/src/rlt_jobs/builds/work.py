"""What a message to a worker brings about: shards, the head of the next under the tail of the last.

The message only wakes. Which shard is taken is decided by the claim, and for whom, by what is well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import RLTError, Unavailable
from rlt_client.schemas.builds import BuildKind, BuildState
from rlt_jobs.builds import lifecycle, stalls
from rlt_jobs.builds.control import Control
from rlt_jobs.builds.models import Build
from rlt_jobs.builds.repository import ScorerChanged
from rlt_jobs.builds.running import NotReady, Run
from rlt_jobs.builds.sampler import Misconfigured, Unhealthy
from rlt_jobs.builds.services import Services, Stopped, unwrapped
from rlt_jobs.database import unbroken
from rlt_jobs.leases import Claimed, LeaseLost, claim_shard, give_back
from rlt_jobs.ringing import ring_next
from rlt_service import telemetry
from rlt_service.logs import bound

__all__ = ["Services", "Stopped", "unwrapped", "work_shard"]

log = logging.getLogger(__name__)

HELD: Final = 8
"""Shards of a process at once: enough to fill its places from the tails of some, few enough to leave others theirs."""


async def work_shard(services: Services, hint: int) -> None:
    """Do shards while there are any and nothing else waits. Whatever happens, what was flushed stays.

    Args:
        hint: the shard that the message names; another is done where that is better.
    """
    if services.draining() or not await services.servers.kinds():
        return
    async with unwrapped(), asyncio.TaskGroup() as group:
        shift = _Shift(services, group)
        looking = group.create_task(shift.control.keep())
        await shift.work(hint)
        looking.cancel()


class _Shift:
    """The time between a message and the end of what it brought about."""

    def __init__(self, services: Services, group: asyncio.TaskGroup) -> None:
        self.control = Control(services)
        self._services = services
        self._group = group
        self._runs: dict[asyncio.Task[None], Run] = {}
        # Celery's limit is for the whole shift: a shard that is taken has half of the time at least
        self._until = time.monotonic() + services.settings.shard_limit_seconds / 2

    async def work(self, hint: int) -> None:
        lease = await self._claim(hint)
        while lease is not None or self._runs:
            if lease is not None:
                self._begin(lease)
                await self._room()
            else:
                await asyncio.wait(self._runs, return_when=asyncio.FIRST_COMPLETED)
            lease = await self._claim(None)

    def _begin(self, lease: Claimed) -> None:
        run = Run(self._services, lease)
        task = self._group.create_task(self._do(run))
        self._runs[task] = run
        task.add_done_callback(self._runs.pop)

    async def _room(self) -> None:
        """Until another shard could be begun: all that was begun is asked for and places are left, or one ended."""
        if len(self._runs) < HELD:
            idle = self._group.create_task(self._idle())
            await asyncio.wait([idle, *self._runs], return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
        else:
            await asyncio.wait(self._runs, return_when=asyncio.FIRST_COMPLETED)

    async def _idle(self) -> None:
        for run in list(self._runs.values()):
            await run.asked.wait()
        for server in self._services.servers.all:
            await server.flow.idle()

    async def _claim(self, hint: int | None) -> Claimed | None:
        if self._services.draining() or time.monotonic() > self._until:
            return None
        kinds = await self._services.servers.kinds()
        if not kinds:
            return None
        try:
            return await unbroken(self._take(hint, kinds))
        except Unavailable as error:
            log.warning("no shard is taken: %s", error)
        except Exception:  # the shards that are being worked on are not to end of it
            log.exception("no shard is taken")
        return None

    async def _take(self, hint: int | None, kinds: Collection[BuildKind]) -> Claimed | None:
        services = self._services
        async with services.database.begin() as session:
            if hint is None and await _others_wait(session):
                return None
            lease = await claim_shard(
                session,
                hint,
                worker=services.worker,
                seconds=services.settings.lease_seconds,
                kinds=kinds,
                running_shards=services.settings.quota_running_shards,
            )
            if lease is not None and hint is not None:
                await ring_next(session, lease.build_id)
        return lease

    async def _do(self, run: Run) -> None:
        lease = run.lease
        ids: dict[str, str | int] = {"build_id": lease.build_id, "shard_id": lease.shard_id, "owner": lease.owner}
        with bound(**ids):  # the task's own, and of those that it begins
            try:
                with self.control.over(run), telemetry.span("shard", parent=lease.traceparent, **ids):
                    await run.run()
                log.info("shard done")
                self._services.metrics.leases.labels("done").inc()
            except LeaseLost as error:
                log.warning("lease lost: %s", error)
                self._services.metrics.leases.labels("lost").inc()
            except Exception as error:
                await self._ended_early(lease, error)

    async def _ended_early(self, lease: Claimed, error: Exception) -> None:
        blameless = isinstance(error, Stopped | NotReady | Misconfigured | ScorerChanged)
        if isinstance(error, Unhealthy) and not blameless:
            blameless = error.refused or not await self._well_again()
        if isinstance(error, Stopped):
            log.info("shard given back: %s", error)
        elif isinstance(error, RLTError):
            log.warning("shard given back: %s", error)
        else:
            log.error("shard given back", exc_info=error)
        self._services.metrics.leases.labels("given back" if blameless else "failed").inc()
        try:
            await unbroken(self._give_back(lease, error, blameless=blameless))
        except Exception:  # the lease runs out by itself, and the other shards go on
            log.exception("shard not given back")

    async def _well_again(self) -> bool:
        """Whether a server that broke in the middle says at once that it is well: it broke of what it was asked."""
        try:
            for server in self._services.servers.all:
                if server.down is not None:
                    await server.ask()
        except RLTError:
            return False
        return True

    async def _give_back(self, lease: Claimed, error: Exception, *, blameless: bool) -> None:
        reason = f"{type(error).__name__}: {error}"
        most = self._services.settings.max_barren
        async with self._services.database.begin() as session:
            await give_back(session, lease, blameless=blameless, max_barren=most, error=reason)
            if isinstance(error, Misconfigured):  # locks are taken in one order: shard, then build
                await lifecycle.fail(session, lease.build_id, error.problem)
            elif isinstance(error, ScorerChanged):  # and every other shard would find the same
                await lifecycle.fail(session, lease.build_id, error.problem())
            if hindered := self._services.servers.hindered():
                await stalls.stall_all(session, *hindered)
            elif isinstance(error, Stopped):
                await ring_next(session, lease.build_id)


async def _others_wait(session: AsyncSession) -> bool:
    """Whether a build waits to be imported or published, which needs this place."""
    waiting = (BuildState.importing, BuildState.finishing)
    found = select(Build.id).where(Build.state.in_(waiting), Build.lease_token.is_(None)).limit(1)
    return await session.scalar(found) is not None
