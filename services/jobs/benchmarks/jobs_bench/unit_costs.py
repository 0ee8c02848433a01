"""What one sample costs each part of the service: bytes by table, seconds by step. `scaling` does the sums."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
import resource
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import httpx
from sqlalchemy import text

from jobs_bench.world import add_build, outcomes, postgres, texts
from rlt_bench.measure import Record
from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.schemas.builds import BuildProblem
from rlt_client.schemas.explain import ExplainRequest
from rlt_client.testing import FakePlatform
from rlt_jobs import app
from rlt_jobs.builds import repository
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.repository import ScorerKey
from rlt_jobs.builds.services import Services
from rlt_jobs.builds.work import work_shard
from rlt_jobs.celery_app import depth, make_celery, send
from rlt_jobs.database import Database
from rlt_jobs.leases import SHARD, claim_shard, give_back
from rlt_jobs.outbox import Message, Queue
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_jobs.store.publish import publish
from rlt_jobs.store.seal import seal
from rlt_local.databases import prepare_valkey, start
from rlt_local.ports import free

__all__ = ["run"]

PROBLEMS: Final = 512
N: Final = 8
SHARD_SAMPLES: Final = 256
WORKED: Final = 128  # problems of the build that a whole worker makes
CLAIMS: Final = 100
CALLS: Final = 300
MESSAGES: Final = 2_000
_SIZE: Final = text("""
SELECT sum(pg_table_size(part)), sum(pg_indexes_size(part))
FROM (SELECT relid AS part FROM pg_partition_tree(:name) UNION SELECT CAST(:name AS regclass)) parts
WHERE pg_relation_size(part) > 0""")  # partitions of other builds are empty, and their indexes have a page each
_LOGGED: Final = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"
SCORER: Final = ScorerKey("student", "r", None, None, "mini", "f", None, 0.7, None)


def run(command: str) -> Record:
    """Seconds are CPU of this process, so that they hold on a busy machine: without Postgres, but for claims."""
    record = Record("builds-unit-costs", command, _machine())
    with postgres() as url, tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(record, url, Path(folder)))
    return record


def _machine() -> dict[str, str]:
    return {"cores": str(os.cpu_count()), "python": platform.python_version()}


async def _measure(record: Record, url: str, folder: Path) -> None:
    database = Database(url, name="jobs_bench")
    store = Store(folder / "store")
    try:
        build = await _build(database, PROBLEMS)
        before = await _scalar(database, _LOGGED)
        await _steps(record, database, store, build)
        await _publishing(record, database, store, url, build)
        logged = float(await _scalar(database, _LOGGED) - before)
        record.add("bytes", "log (WAL) of a sample", bytes=logged / (PROBLEMS * N))
        await _claims(record, database)
        await _calls(record, url, folder, build)
        await _worker(record, database, store, url)
        _messages(record, folder)
    finally:
        await database.close()


async def _build(database: Database, problems: int) -> int:
    build = await add_build(database, problems=problems, n=N, shard_samples=SHARD_SAMPLES)
    rows = (BuildProblem(question=f"{index} " + "q" * 400, answer="a" * 40) for index in range(problems))
    async with database.begin() as session:
        await repository.add_problems(session, build, 0, rows)
    return build


async def _steps(record: Record, database: Database, store: Store, build: int) -> None:
    """Flush and seal of every shard, and what they leave on disk."""
    made = texts(PROBLEMS * N, seed=1)  # all different: files keep what is said twice once
    flushed = sealed = 0.0
    async with database.begin() as session:
        scorer = await repository.pin_scorer(session, build, SCORER)
    rows, spooled = PROBLEMS * N, 0.0
    for _ in range(rows // SHARD_SAMPLES):
        async with database.begin() as session:
            lease = await claim_shard(session, None, worker="bench", seconds=600)
        assert lease is not None
        batch = outcomes(lease.lo, SHARD_SAMPLES, N, made[lease.lo * N :])
        began = time.process_time()
        async with database.begin() as session:
            await flush(session, lease, batch, scorer_id=scorer, seconds=1)
        flushed += time.process_time() - began
        spooled += float(await _scalar(database, "SELECT avg(octet_length(texts)) FROM spool"))
        began = time.process_time()
        await seal(database, store, lease)
        sealed += time.process_time() - began
    record.add("flush", "a core of a worker", rows_per_s=rows / flushed)
    size = float(await _scalar(database, "SELECT sum(bytes) FROM files WHERE kind = 'shard'"))
    text_bytes = sum(len((each.explanation or "").encode()) for each in made) / len(made)
    record.add("seal", "a core of a worker", rows_per_s=rows / sealed, mb_per_s=rows * text_bytes / sealed / 1e6)
    record.add("bytes", "text of a trace", bytes=text_bytes)
    record.add("bytes", "trace in the spool", bytes=spooled / (rows // SHARD_SAMPLES))
    record.add("bytes", "trace in a sealed file", bytes=size / rows)
    await _sizes(record, database, "problems", "spool")


async def _sizes(record: Record, database: Database, *names: str) -> None:
    for name in names:
        async with database.begin() as session:
            heap, index = (await session.execute(_SIZE, {"name": name})).one()
        rows = await _scalar(database, f"SELECT count(*) FROM {name}") or PROBLEMS * N  # noqa: S608 our own; the spool is empty again
        record.add("bytes a row", name, table=float(heap) / rows, indexes=float(index) / rows)


async def _publishing(record: Record, database: Database, store: Store, url: str, build: int) -> None:
    services = _services(database, store, url, "http://nowhere")
    began = time.process_time()
    await publish(services, build)
    seconds = time.process_time() - began
    assert await _scalar(database, f"SELECT state::text FROM builds WHERE id = {build}") == "done"  # noqa: S608
    size = float(await _scalar(database, "SELECT sum(bytes) FROM files WHERE kind = 'compact'"))
    await _sizes(record, database, "samples", "scores")
    record.add("publish", "a core of a worker", rows_per_s=PROBLEMS * N / seconds)
    record.add("bytes", "trace in a version's file", bytes=size / (PROBLEMS * N))


async def _claims(record: Record, database: Database) -> None:
    """One after the other among 2,000 ready shards, each given back outside the clock."""
    await add_build(database, problems=2_000, n=1, shard_samples=1)
    seconds = []
    for _ in range(CLAIMS):
        began = time.perf_counter()
        async with database.begin() as session:
            lease = await claim_shard(session, None, worker="bench", seconds=60)
        seconds.append(time.perf_counter() - began)
        assert lease is not None
        async with database.begin() as session:
            await give_back(session, lease, blameless=True, max_barren=5)
    await _sizes(record, database, "shards")
    record.add("claim", "one after the other", ms=1e3 * statistics.median(seconds))
    async with database.begin() as session:
        await session.execute(text("UPDATE builds SET state = 'cancelled' WHERE state = 'running'"))


async def _calls(record: Record, url: str, folder: Path, build: int) -> None:
    """`GET /builds/{id}` of the app itself, without a socket; its CPU is the limit, not the wire."""
    api = app.build(Settings(database_url=url, store=str(folder / "store")))
    async with api.router.lifespan_context(api):
        transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            async with Database(url, name="jobs_bench", pool=1).begin() as session:
                await session.execute(text("UPDATE builds SET owner = 'local'"))
                await session.execute(text("UPDATE datasets SET owner = 'local'"))
            await _ask(http, build, 10)
            began = time.process_time()
            await _ask(http, build, CALLS)
            record.add("API", "GET /builds/{id}, a core", calls_per_s=CALLS / (time.process_time() - began))


async def _ask(http: httpx.AsyncClient, build: int, count: int) -> None:
    for _ in range(count):
        (await http.get(f"/builds/{build}")).raise_for_status()


async def _worker(record: Record, database: Database, store: Store, url: str) -> None:
    """A whole worker over real HTTP; the CPU of the servers, which are another process, is left out."""
    build = await _build(database, WORKED)
    with _servers() as address:
        services = _services(database, store, url, address)
        async with services.teacher, services.reward:
            before = _cpu()
            for _ in range(WORKED * N // SHARD_SAMPLES):
                await work_shard(services, 0)
            seconds = _cpu() - before
    assert await _scalar(database, f"SELECT state::text FROM builds WHERE id = {build}") == "finishing"  # noqa: S608
    record.add("worker", "CPU of 1,000 samples", seconds=1e3 * seconds / (WORKED * N))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _services(database: Database, store: Store, url: str, servers: str) -> Services:
    return Services(
        settings=Settings(database_url=url, store=store.url, flush_seconds=1),
        database=database,
        store=store,
        teacher=AsyncTeacherClient(servers),
        reward=AsyncRewardClient(servers),
        worker="bench",
    )


@contextmanager
def _servers() -> Iterator[str]:
    """Teacher and reward server that compute nothing and say texts of the usual length, in a process of their own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _serve(told: Connection) -> None:
    made = texts(64, seed=2)

    def explain(request: ExplainRequest, _index: int) -> str:
        return made[(request.seed or 0) % len(made)].explanation or ""

    with FakePlatform(explain=explain).serve() as url:
        told.send(url)
        signal.pause()


def _messages(record: Record, folder: Path) -> None:
    program = prepare_valkey(folder / "valkey", free()[0], durable=False)
    with start(program, folder / "valkey.log", die_with_caller=True) as server:
        server.wait_ready()
        celery = make_celery(Settings(database_url="postgresql+psycopg://", redis_url=server.url))
        began = time.process_time()
        for ref in range(MESSAGES):
            send(celery, Message(Queue.shards, SHARD, ref))
        seconds = time.process_time() - began
        assert depth(celery, Queue.shards) == MESSAGES
    record.add("Redis", "a core of a relay", messages_per_s=MESSAGES / seconds)


async def _scalar(database: Database, query: str) -> Any:
    async with database.begin() as session:
        return await session.scalar(text(query))
