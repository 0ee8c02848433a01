"""What the service counts: the state of the work, asked of the database when metrics are read, and what workers do."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from sqlalchemy import text

from rlt_client.errors import RLTError
from rlt_client.schemas.builds import BuildState, ShardState
from rlt_jobs.database import Database
from rlt_jobs.shared_metrics import FOLDER
from rlt_service.metrics import Metrics

__all__ = ["Backlog", "WorkerMetrics", "forget_dead_processes", "serve_worker"]

log = logging.getLogger(__name__)

OPEN: Final = (BuildState.importing, BuildState.running, BuildState.paused, BuildState.finishing)

_BUILDS = text("""
SELECT state, count(*) AS builds, count(stalled_at) AS stalled FROM builds
WHERE state IN ('importing', 'running', 'paused', 'finishing') GROUP BY state""")
_SHARDS = text("""
SELECT s.state, count(*) AS shards, sum(s.samples_per_s) AS samples_per_s, sum(s.tokens_per_s) AS tokens_per_s
FROM shards s JOIN builds b ON b.id = s.build_id
WHERE b.state IN ('running', 'paused') GROUP BY s.state""")
_OUTBOX = text("""
SELECT count(*) AS waiting, coalesce(extract(epoch FROM now() - min(created_at)), 0) AS seconds
FROM outbox WHERE sent_at IS NULL""")


class Backlog:
    """Gauges of the API: every replica gives the same, so look at one of them (`max`, not `sum`)."""

    def __init__(self, metrics: Metrics, database: Database) -> None:
        self._database = database
        self._builds = metrics.gauge("jobs_builds", "open builds", ["state"])
        self._stalled = metrics.gauge("jobs_builds_stalled", "running builds that cannot go on")
        self._shards = metrics.gauge("jobs_shards", "shards of running and paused builds", ["state"])
        self._samples = metrics.gauge("jobs_samples_per_second", "samples that running leases make")
        self._tokens = metrics.gauge("jobs_tokens_per_second", "tokens that running leases make")
        self._outbox = metrics.gauge("jobs_outbox_messages", "messages that no relay has sent yet")
        self._age = metrics.gauge("jobs_outbox_age_seconds", "age of the oldest of them")

    async def refresh(self) -> None:
        """Without a database the gauges stay as they were; readiness tells of it."""
        try:
            async with self._database.begin() as session:
                builds = {row.state: row for row in await session.execute(_BUILDS)}
                shards = {row.state: row for row in await session.execute(_SHARDS)}
                outbox = (await session.execute(_OUTBOX)).one()
        except RLTError as error:
            log.warning("metrics are not up to date: %s", error)
            return
        for state in OPEN:
            self._builds.labels(state.value).set(builds[state].builds if state in builds else 0)
        for shard in ShardState:
            self._shards.labels(shard.value).set(shards[shard].shards if shard in shards else 0)
        self._stalled.set(sum(row.stalled for row in builds.values()))
        running = shards.get(ShardState.running)
        self._samples.set(running.samples_per_s if running else 0)
        self._tokens.set(running.tokens_per_s if running else 0)
        self._outbox.set(outbox.waiting)
        self._age.set(float(outbox.seconds))


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
