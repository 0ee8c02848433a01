"""What the service counts: the state of the work, asked of the database when metrics are read, and what workers do."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import RLTError
from rlt_client.schemas.builds import BuildState, ShardState
from rlt_client.schemas.health import OutboxHealth
from rlt_jobs.database import Database
from rlt_jobs.health import repository
from rlt_jobs.health.service import store_health
from rlt_jobs.outbox import Queue
from rlt_jobs.shared_metrics import FOLDER
from rlt_jobs.store.files import Store
from rlt_service.metrics import Metrics

__all__ = ["Backlog", "RelayMetrics", "WorkerMetrics", "forget_dead_processes", "serve_worker"]

log = logging.getLogger(__name__)

OPEN: Final = (BuildState.importing, BuildState.running, BuildState.paused, BuildState.finishing)
ENDED: Final = (BuildState.done, BuildState.failed, BuildState.cancelled)

_BUILDS = text("""
SELECT state, count(*) AS builds, count(stalled_at) AS stalled FROM builds
WHERE state IN ('importing', 'running', 'paused', 'finishing') GROUP BY state""")
_SHARDS = text("""
SELECT s.state, count(*) AS shards, sum(s.samples_per_s) AS samples_per_s, sum(s.tokens_per_s) AS tokens_per_s
FROM shards s JOIN builds b ON b.id = s.build_id
WHERE b.state IN ('running', 'paused') GROUP BY s.state""")
_ENDED = text("""
SELECT state, count(*) AS builds FROM builds WHERE finished_at > now() - interval '1 day' GROUP BY state""")


class Backlog:
    """Gauges of the API: every replica gives the same, so look at one of them (`max`, not `sum`)."""

    def __init__(self, metrics: Metrics, database: Database, store: Store) -> None:
        self._database = database
        self._store = store
        self._up = metrics.gauge("jobs_database_up", "1: the database answered; what else is asked of it is as of then")
        self._store_up = metrics.gauge("jobs_store_up", "1: files could be written now")
        self._room = metrics.gauge("jobs_store_bytes", "room of the disk under a folder; none of S3", ["kind"])
        self._rung = metrics.gauge("jobs_canary_rung_seconds", "since a relay sent a proof through a queue", ["queue"])
        self._answered = metrics.gauge("jobs_canary_answered_seconds", "since one came to a worker", ["queue"])
        self._ended = metrics.gauge("jobs_builds_ended", "builds that ended within a day", ["state"])
        self._overdue = metrics.gauge("jobs_shards_overdue", "shards whose lease ran out and was not taken back")
        self._builds = metrics.gauge("jobs_builds", "open builds", ["state"])
        self._stalled = metrics.gauge("jobs_builds_stalled", "running builds that cannot go on")
        self._shards = metrics.gauge("jobs_shards", "shards of running and paused builds", ["state"])
        self._samples = metrics.gauge("jobs_samples_per_second", "samples that running leases make")
        self._tokens = metrics.gauge("jobs_tokens_per_second", "tokens that running leases make")
        self._outbox = metrics.gauge("jobs_outbox_messages", "messages that no relay has sent yet")
        self._age = metrics.gauge("jobs_outbox_age_seconds", "age of the oldest of them")

    async def refresh(self) -> None:
        """Without a database its gauges stay as they were, and `jobs_database_up` and readiness tell of it."""
        await asyncio.gather(self._ask_store(), self._ask_database())

    async def _ask_store(self) -> None:
        health = await store_health(self._store)
        self._store_up.set(health.ok)
        if health.free_bytes is not None and health.total_bytes is not None:
            self._room.labels("free").set(health.free_bytes)
            self._room.labels("total").set(health.total_bytes)

    async def _ask_database(self) -> None:
        try:
            async with self._database.begin() as session:
                await self._ask(session)
        except RLTError as error:
            log.warning("metrics are not up to date: %s", error)
            self._up.set(0)
        else:
            self._up.set(1)

    async def _ask(self, session: AsyncSession) -> None:
        self._tell_work(
            {row.state: row for row in await session.execute(_BUILDS)},
            {row.state: row for row in await session.execute(_SHARDS)},
        )
        ended = {row.state: row.builds for row in await session.execute(_ENDED)}
        for state in ENDED:
            self._ended.labels(state.value).set(ended.get(state, 0))
        self._tell_messages(await repository.outbox(session), await repository.canaries(session))
        self._overdue.set((await repository.shards(session)).overdue)

    def _tell_messages(self, outbox: OutboxHealth, canaries: Mapping[str, repository.Canary]) -> None:
        """A queue that no proof ever came through is as one that none came through for ever."""
        for queue in Queue:
            canary = canaries.get(queue.value, repository.Canary(math.inf, None))
            self._rung.labels(queue.value).set(canary.rung)
            self._answered.labels(queue.value).set(math.inf if canary.answered is None else canary.answered)
        self._outbox.set(outbox.waiting)
        self._age.set(outbox.oldest_seconds)

    def _tell_work(self, builds: Mapping[Any, Row[Any]], shards: Mapping[Any, Row[Any]]) -> None:
        for state in OPEN:
            self._builds.labels(state.value).set(builds[state].builds if state in builds else 0)
        for shard in ShardState:
            self._shards.labels(shard.value).set(shards[shard].shards if shard in shards else 0)
        self._stalled.set(sum(row.stalled for row in builds.values()))
        running = shards.get(ShardState.running)
        self._samples.set(running.samples_per_s if running else 0)
        self._tokens.set(running.tokens_per_s if running else 0)


class RelayMetrics:
    """Of one relay."""

    def __init__(self, metrics: Metrics) -> None:
        self.messages = metrics.counter("jobs_relayed_messages", "messages sent to workers", ["queue"])
        self.reaped = metrics.counter("jobs_reaped_leases", "leases taken back from workers that fell silent")
        self.failures = metrics.counter("jobs_relay_failures", "rounds of a loop that failed", ["loop"])
        self.round = metrics.gauge("jobs_relay_round_timestamp_seconds", "when a loop last came to its end", ["loop"])


class WorkerMetrics:
    """Of one worker: its processes add up in a folder that the first of them reads from."""

    def __init__(self, metrics: Metrics) -> None:
        self.flush_seconds = metrics.histogram("jobs_flush_seconds", "writing finished samples")
        self.flush_rows = metrics.counter("jobs_flushed_samples", "samples written")
        self.seal_seconds = metrics.histogram("jobs_seal_seconds", "sealing a shard's texts into a file")
        self.leases = metrics.counter("jobs_leases", "leases by how they ended", ["end"])
        self.in_flight = Gauge(
            "rlt_jobs_requests_in_flight",
            "requests under way, by server",
            ["server"],
            registry=metrics.registry,
            multiprocess_mode="livesum",  # of the processes that live
        )


def serve_worker(port: int) -> None:
    """Give out what all processes of this worker count, on all interfaces; `shared_metrics.share` goes before."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # ships half of its types
    start_http_server(port, registry=registry)


def forget_dead_processes() -> None:
    """What a killed process had under way is under way no more; its counts stay."""
    for file in Path(os.environ[FOLDER]).glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # as above
