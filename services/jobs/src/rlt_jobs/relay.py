"""`rlt-jobs relay`: sends the outbox, takes back lost leases, rings again for what was forgotten.

Any number of replicas may run: outbox rows are locked one by one, and the rest is done by whoever gets the lock.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from celery import Celery
from kombu.exceptions import OperationalError
from prometheus_client import start_http_server
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import Unavailable
from rlt_jobs import outbox
from rlt_jobs.builds import lifecycle
from rlt_jobs.celery_app import CANARY, depth, make_celery, send
from rlt_jobs.database import Database
from rlt_jobs.leases import reap
from rlt_jobs.metrics import RelayMetrics
from rlt_jobs.outbox import Message, Queue
from rlt_jobs.ringing import ring_stalled, unattended
from rlt_jobs.schema import until_current
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_jobs.store.sweep import sweep
from rlt_service.logs import bound
from rlt_service.metrics import Metrics

__all__ = ["Relay", "run"]

log = logging.getLogger(__name__)

REAP_LOCK = 0x524C54_02
CANARY_LOCK = 0x524C54_03
PROBE_LOCK = 0x524C54_04
BATCH = 500  # messages a transaction: a crash sends so many twice at most
PAUSE_AFTER_FAILURE = 2.0


class Relay:
    """The loops, one method each; a test calls them one at a time."""

    def __init__(
        self, settings: Settings, database: Database, celery: Celery, metrics: RelayMetrics | None = None
    ) -> None:
        self.metrics = metrics or RelayMetrics(Metrics())
        self._settings = settings
        self._database = database
        self._celery = celery
        self._store = Store(settings.store, endpoint_url=settings.store_endpoint)

    async def relay(self) -> int:
        """Send what waits. Returns how many."""
        async with self._database.begin() as session:
            return await outbox.relay(session, self._send, limit=BATCH)

    async def _send(self, message: Message) -> None:
        await asyncio.to_thread(send, self._celery, message)
        self.metrics.messages.labels(message.queue.value).inc()

    async def reap(self) -> None:
        """End expired leases, ring for what nobody took, close builds that have ended."""
        waiting = await asyncio.to_thread(depth, self._celery, Queue.shards)
        async with self._database.begin() as session:
            if not await _alone(session, REAP_LOCK):
                return
            reaped = await reap(session, max_barren=self._settings.max_barren)
            if waiting < BATCH:  # a long queue has forgotten nothing; ringing again would only lengthen it
                await unattended(session, seconds=self._settings.reconcile_seconds, limit=BATCH - waiting)
            await lifecycle.settle_all(session)
        self.metrics.reaped.inc(reaped)

    async def sweep(self) -> None:
        """Remove what was deleted and kept long enough, and files that nobody reads."""
        async for line in sweep(self._database, self._store, self._settings):
            log.info("removed %s", line)

    async def probe(self) -> None:
        """Wake a worker for builds that cannot go on: it tries again."""
        async with self._database.begin() as session:
            if await _alone(session, PROBE_LOCK):
                await ring_stalled(session, seconds=self._settings.probe_seconds)

    async def canary(self) -> None:
        async with self._database.begin() as session:
            if await _alone(session, CANARY_LOCK):
                await outbox.ring_canaries(session, CANARY)
                await outbox.purge(session)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. A database or broker that is away is waited for."""
        settings = self._settings
        loops: dict[str, tuple[float, Callable[[], Awaitable[object]]]] = {
            "relay": (settings.relay_seconds, self._drain),
            "reap": (settings.reap_seconds, self.reap),
            "probe": (settings.probe_seconds, self.probe),
            "canary": (settings.canary_seconds, self.canary),
            "sweep": (settings.sweep_seconds, self.sweep),
        }
        await asyncio.gather(*(self._repeat(stop, name, *loop) for name, loop in loops.items()))

    async def _repeat(
        self, stop: asyncio.Event, name: str, seconds: float, act: Callable[[], Awaitable[object]]
    ) -> None:
        """A loop that ended would stop every build without a word: whatever a round fails of, there is a next."""
        while not stop.is_set():
            pause = seconds
            try:
                with bound(loop=name):
                    await act()
                self.metrics.round.labels(name).set_to_current_time()
            except Exception as error:
                self.metrics.failures.labels(name).inc()
                _tell(name, error)
                pause = max(seconds, PAUSE_AFTER_FAILURE)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()

    async def _drain(self) -> None:
        while await self.relay() == BATCH:
            pass
        if self._settings.heartbeat_file is not None:
            self._settings.heartbeat_file.touch()


async def _alone(session: AsyncSession, lock: int) -> bool:
    """Whether this transaction is the only one that does this now."""
    return bool(await session.scalar(select(func.pg_try_advisory_xact_lock(lock))))


def _tell(loop: str, error: Exception) -> None:
    if isinstance(error, Unavailable | OperationalError):
        log.warning("waiting: %s", error, extra={"loop": loop})
    else:
        log.error("failed; tried again", exc_info=error, extra={"loop": loop})


async def run(settings: Settings) -> None:
    """The process: until SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    database = Database(settings.database_url, name="rlt-jobs relay", pool=5)
    try:
        await until_current(database, stop)
        metrics = Metrics()
        relay = Relay(settings, database, make_celery(settings), RelayMetrics(metrics))
        if settings.relay_metrics_port is not None:
            start_http_server(settings.relay_metrics_port, registry=metrics.registry)
        await relay.run(stop)
    finally:
        await database.close()
