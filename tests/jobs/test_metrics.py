"""What the API and a worker give out to Prometheus."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from rlt_client.errors import Unavailable
from rlt_jobs.builds.models import Build
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.metrics import Backlog
from rlt_local.ports import free
from rlt_service.metrics import Metrics


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"rlt_jobs_{name}", labels)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_state_of_the_work_is_asked_of_the_database(
    services: Services, make_build: Any, claim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await make_build(problems=5, n=1, shard_samples=1)
    await claim(0)
    async with services.database.begin() as session:
        await session.execute(update(Build).where(Build.id == build_id).values(stalled_at=Build.created_at))
    metrics = Metrics()
    backlog = Backlog(metrics, services.database, services.store)
    await backlog.refresh()
    seen = metrics.registry
    assert (value(seen, "builds", state="running"), value(seen, "builds", state="paused")) == (1, 0)
    assert [value(seen, "shards", state=state) for state in ("ready", "running", "done", "dead")] == [4, 1, 0, 0]
    assert value(seen, "builds_stalled") == 1
    assert value(seen, "outbox_messages") == 5
    age = value(seen, "outbox_age_seconds")
    assert age is not None
    assert age > 0

    def away() -> Any:
        raise Unavailable("no database")

    monkeypatch.setattr(services.database, "begin", away)
    await backlog.refresh()  # keeps what it knew
    assert value(seen, "shards", state="ready") == 4


@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_counts_its_leases_flushes_and_seals(services: Services, make_build: Any) -> None:
    await make_build(problems=4, n=1, shard_samples=2)
    await work_shard(services, 0)
    seen = services.metrics.leases.labels("done")._value.get()
    assert (seen, services.metrics.flush_rows._value.get()) == (2, 4)
    assert services.metrics.seal_seconds._sum.get() > 0


def test_processes_of_a_worker_add_up_and_those_that_died_have_nothing_under_way() -> None:
    """As `rlt-jobs worker --metrics-port` does it: in processes of their own, for the library looks once."""
    [port] = free()
    script = f"""
import os, sys
from rlt_jobs import shared_metrics
shared_metrics.share()
from rlt_jobs.metrics import WorkerMetrics, forget_dead_processes, serve_worker
from rlt_service.metrics import Metrics
serve_worker({port})
children = []
for number in range(2):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        mine = WorkerMetrics(Metrics())
        mine.flush_rows.inc(10)
        mine.in_flight.labels("teacher").set(3)
        os.write(write, b"x")
        if number == 0:
            os._exit(1)
        sys.stdin.readline()
        os._exit(0)
    os.read(read, 1)
    children.append(child)
os.waitpid(children[0], 0)
forget_dead_processes()
print("ready", flush=True)
sys.stdin.readline()
print(os.environ[shared_metrics.FOLDER], flush=True)
"""
    environment = {key: value for key, value in os.environ.items() if not key.lower().startswith("prometheus")}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
        process.stdin.write("\n\n")
        process.stdin.close()
        folder = process.stdout.readline().strip()
    assert (found["rlt_jobs_flushed_samples_total"], found["rlt_jobs_requests_in_flight"]) == (20, 3)
    assert not Path(folder).exists()
