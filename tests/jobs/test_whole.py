"""The whole service as real processes: API, relay, Celery workers, Postgres, Valkey; workers are killed on the way.

Teacher and reward server are `rlt_client.testing.FakePlatform` over real HTTP. The property it keeps: what a request
gets depends on its question and seed alone, as from a deterministic engine, so that a sample that is asked for again
after a crash is the same sample.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pyarrow.parquet as pq
import pytest
import redis

from rlt_client.client import JobsClient
from rlt_client.errors import APIError, Unavailable
from rlt_client.schemas.builds import BuildRequest, BuildState, Source
from rlt_client.schemas.common import GenStatus
from rlt_client.schemas.explain import ExplainRequest
from rlt_client.testing import FakePlatform
from rlt_jobs import admin
from rlt_jobs.app import build
from rlt_jobs.builds.spec import sample_seed
from rlt_jobs.settings import Settings
from rlt_service.testing import running

LATENCY = 0.05  # seconds of an explanation: enough that a kill finds requests under way
CONNECTED = """
SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'rlt-jobs worker'"""


def said(question: str, seed: int | None) -> str:
    return f"{question} {hashlib.sha256(f'{question}/{seed}'.encode()).hexdigest()}"


class Platform(FakePlatform):
    """Can be told to be ill, and how many explanations it writes: work does not end before a test has seen it."""

    def __init__(self) -> None:
        super().__init__(explain=self._explained, refuse=self._refusal)
        self.down = False
        self._left = math.inf
        self._more = threading.Condition()

    def write(self, most: float = math.inf) -> None:
        """So many explanations more; whoever asks for others waits."""
        with self._more:
            self._left = most
            self._more.notify_all()

    def _explained(self, request: ExplainRequest, _index: int) -> str:
        with self._more:
            self._more.wait_for(lambda: self._left > 0)
            self._left -= 1
        time.sleep(LATENCY * random.uniform(0.5, 1.5))
        return said(request.question, request.seed)

    def _refusal(self, _request: httpx.Request) -> APIError | None:
        return Unavailable("being restarted") if self.down else None


class Service:
    """The processes, and a client of the API."""

    def __init__(self, settings: Settings, api: str, folder: Path) -> None:
        self.settings = settings
        self.http = httpx.Client(base_url=api, timeout=60)
        self._folder = folder
        self._env = {f"RLT_JOBS_{k}".upper(): str(v) for k, v in settings.model_dump(exclude_unset=True).items()}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: str) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{command}-{len(self.processes)}.log").open("wb")
        argv = [sys.executable, "-m", "rlt_jobs", command]
        env = {**os.environ, **self._env, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process

    def get(self, path: str, **params: Any) -> Any:
        reply = self.http.get(path, params=params)
        reply.raise_for_status()
        return reply.json()

    def wait(self, build: int, *states: str, seconds: float = 60) -> Any:
        def reached() -> Any:
            found = self.get(f"/builds/{build}")
            return found if found["state"] in states else None

        return until(reached, seconds, lambda: f"{self.get(f'/builds/{build}')}\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self._folder.glob("*.log")))

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.settings.database_url.replace("+psycopg", "")) as connection:
            return connection.execute(statement.encode(), values).fetchall()

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.http.close()


def until(reached: Any, seconds: float, why: Any) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def platform() -> Iterator[tuple[Platform, str]]:
    fake = Platform()
    with fake.serve() as url:
        yield fake, url


@pytest.fixture(scope="module")
def service(
    postgres_url: str, valkey_url: str, platform: tuple[Platform, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("jobs")
    settings = Settings(
        database_url=postgres_url,
        redis_url=valkey_url,
        teacher_url=platform[1],
        reward_url=platform[1],
        store=str(folder / "store"),
        shard_samples=20,
        lease_seconds=60,
        heartbeat_seconds=0.5,
        flush_seconds=0.3,
        patience_seconds=0,
        relay_seconds=0.1,
        reap_seconds=0.5,
        reconcile_seconds=1.5,
        canary_seconds=3,
        concurrency=2,
        start_in_flight=4,
        max_in_flight=8,
        compact_bytes=2**16,
        heartbeat_file=folder / "beat",
    )
    with ExitStack() as stack:
        api = stack.enter_context(running(lambda: build(settings)))
        made = Service(settings, api, folder)
        stack.callback(made.stop)
        yield made


def check(service: Service) -> None:
    """Every file is read and every pointer followed."""
    assert admin.run(admin.check_store(service.settings), "check") == 0


def made(service: Service, build: int) -> int:
    found: int = service.query("SELECT count(*) FROM samples WHERE build_id = %s", build)[0][0]
    return found


def exactly(service: Service, build: int, problems: int, n: int) -> None:
    """n samples of each problem, none twice, each scored once, nothing left in the spool."""
    query = "SELECT problem, array_agg(sample_idx ORDER BY sample_idx) FROM samples WHERE build_id = %s GROUP BY 1"
    assert sorted(service.query(query, build)) == [(problem, list(range(n))) for problem in range(problems)]
    assert service.query("SELECT count(*) FROM scores WHERE build_id = %s", build) == [(problems * n,)]
    assert service.query("SELECT count(*) FROM spool") == [(0,)]


def test_a_killed_worker_and_a_forgetful_broker_lose_nothing_and_double_nothing(
    service: Service, platform: tuple[Platform, str]
) -> None:
    problems, n = 40, 4
    platform[0].write(40)
    service.start("relay")
    worker = service.start("worker")
    rows = [{"question": f"Q{i}", "answer": f"A{i}"} for i in range(problems)]
    request = {"dataset": "chaos", "problems": rows, "n": n, "seed": 7, "selection": {"mode": "all"}}
    reply = service.http.post("/builds", json=request)
    assert reply.status_code == 202, reply.text
    id = reply.json()["id"]

    until(lambda: made(service, id) >= 12, 60, service.logs)
    os.killpg(worker.pid, signal.SIGKILL)  # the worker and all its processes, requests under way
    worker.wait()
    assert 12 <= made(service, id) < problems * n, "the kill came too late to prove anything"
    platform[0].write()
    until(lambda: not service.query(CONNECTED), 60, service.logs)
    # as if their time had passed: leases short enough to wait for would be lost wherever the machine stands still
    assert service.query("UPDATE shards SET lease_until = now() WHERE state = 'running' RETURNING id")
    with redis.Redis.from_url(service.settings.redis_url) as broker:
        broker.flushall()  # and what was queued is forgotten
    service.start("worker")

    done = service.wait(id, "done", "failed")
    assert done["state"] == "done", done
    assert (done["counts"]["gen"]["complete"], done["counts"]["missing"]) == (problems * n, 0)
    exactly(service, id, problems, n)
    check(service)

    version = service.get(f"/versions/{done['version']}")
    assert version["rows"] == problems * n
    found = [
        row
        for file in version["files"]
        for row in pq.read_table(Path(service.settings.store) / file["uri"]).to_pylist()
    ]
    expected = {(p, s): said(f"Q{p}", sample_seed(7, p, s, 0)) for p in range(problems) for s in range(n)}
    assert {(row["problem"], row["sample_idx"]): row["explanation"] for row in found} == expected
    assert len(found) == problems * n


def test_an_upload_is_built_through_an_outage_and_exported_by_the_client(
    service: Service, platform: tuple[Platform, str], tmp_path: Path
) -> None:
    """After the first test: its relay and its second worker still run."""
    problems, n = 30, 2
    source = tmp_path / "problems.jsonl"
    source.write_text("".join(json.dumps({"question": f"U{i}", "answer": f"A{i}"}) + "\n" for i in range(problems)))
    with JobsClient(str(service.http.base_url)) as jobs:
        platform[0].write(20)
        upload = jobs.upload(source)
        build = jobs.create_build(BuildRequest(dataset="uploaded", source=Source(upload=upload.id), n=n))
        until(lambda: made(service, build.id) >= 5, 60, service.logs)
        platform[0].down = True
        platform[0].write()
        time.sleep(1)  # leases end, and those who come find nobody ready
        assert jobs.build(build.id).state is BuildState.running
        platform[0].down = False
        service.wait(build.id, "done", "failed")
        done = jobs.build(build.id)
        assert done.state is BuildState.done
        assert done.counts.gen[GenStatus.complete] == problems * n  # the outage made no sample an error
        exactly(service, build.id, problems, n)
        assert done.version is not None
        assert jobs.export(done.version, tmp_path / "chats.jsonl") > 0
        assert len((tmp_path / "chats.jsonl").read_text().splitlines()) == problems
        assert service.settings.heartbeat_file is not None
        assert service.settings.heartbeat_file.exists()
        arrived = "SELECT bool_and(arrived_at IS NOT NULL) FROM canaries"
        until(lambda: service.query(arrived) == [(True,)], 30, service.logs)


def test_a_worker_told_to_stop_gives_its_shards_back_and_ends(service: Service, platform: tuple[Platform, str]) -> None:
    """After the second test, with the same worker."""
    worker = service.processes[-1]
    platform[0].write(40)
    rows = [{"question": f"S{i}", "answer": "A"} for i in range(200)]
    id = service.http.post("/builds", json={"dataset": "stopped", "problems": rows, "n": 4}).json()["id"]
    until(lambda: made(service, id) >= 5, 60, service.logs)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, service.logs()
    platform[0].write()
    states = "SELECT count(*) FILTER (WHERE state = 'running'), max(barren) FROM shards WHERE build_id = %s"
    assert service.query(states, id) == [(0, 0)], service.logs()
    assert 5 <= made(service, id) < 800
