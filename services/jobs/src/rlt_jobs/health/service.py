"""The standing of the service and of all that it needs, in one reply. What is away is told and holds nobody up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from importlib.metadata import version

from rlt_client.errors import Unavailable
from rlt_client.schemas.health import DatabaseHealth, JobsHealth, QueueHealth, StoreHealth
from rlt_jobs import schema
from rlt_jobs.database import Database
from rlt_jobs.health import broker, repository
from rlt_jobs.outbox import Queue
from rlt_jobs.schema import State
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store, StoreUnavailable

__all__ = ["HealthService", "store_health"]

STORE_SECONDS = 5.0  # one that hangs longer than an orchestrator waits for a probe is as good as away


class HealthService:
    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        self._settings = settings
        self._database = database
        self._store = store

    async def details(self) -> JobsHealth:
        settings = self._settings
        store, redis, depths = await asyncio.gather(
            store_health(self._store),
            asyncio.to_thread(broker.ask, settings.redis_url),
            asyncio.to_thread(broker.depths, settings),
        )
        health = JobsHealth(
            version=version("rlt-jobs"),
            now=datetime.now(UTC),
            canary_seconds=settings.canary_seconds,
            database=DatabaseHealth(ok=False, newest=schema.newest()),
            broker=redis,
            store=store,
        )
        await self._ask_database(health, depths)
        return health

    async def _ask_database(self, health: JobsHealth, depths: dict[str, int]) -> None:
        """Into `health`; of a schema that is older than this program nothing more is asked."""
        told = health.database
        try:
            told.revision = await schema.revision_of(self._database)
            async with self._database.begin() as session:
                server = await repository.server(session)
                told.version, told.now = server.version, server.now
                told.ok = schema.state(told.revision) in (State.same, State.newer)
                told.detail = schema.words(told.revision)
                if told.ok:
                    rung = await repository.canaries(session)
                    health.outbox = await repository.outbox(session)
                    health.shards = await repository.shards(session)
                    health.troubled = await repository.troubled(session)
                    health.queues = [_queue(queue, rung, depths) for queue in Queue]
        except Unavailable as error:
            told.ok, told.detail = False, error.detail


def _queue(queue: Queue, rung: dict[str, repository.Canary], depths: dict[str, int]) -> QueueHealth:
    row = rung.get(queue.value)
    return QueueHealth(
        name=queue.value,
        messages=depths.get(queue.value),
        rung_seconds=row.rung if row else None,
        answered_seconds=row.answered if row else None,
    )


async def store_health(store: Store) -> StoreHealth:
    """Whether files could be written now, and how much room there is."""
    try:
        async with asyncio.timeout(STORE_SECONDS):
            await asyncio.to_thread(store.probe)
            free, total = await asyncio.to_thread(store.room)
    except StoreUnavailable as error:
        return StoreHealth(ok=False, detail=error.detail)
    except TimeoutError:
        return StoreHealth(ok=False, detail=f"{store.url} does not answer")
    return StoreHealth(ok=True, detail=store.url, free_bytes=free, total_bytes=total)
