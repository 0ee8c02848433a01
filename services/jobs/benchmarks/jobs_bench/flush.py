"""The fenced write: rows/s by the size of a batch and by how many workers write at once, each its own process."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from dataclasses import dataclass
from itertools import product
from multiprocessing.synchronize import Barrier
from typing import Final

from jobs_bench.world import add_build, hold, outcomes, pin, postgres, texts, with_database
from rlt_bench.measure import Record, machine
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.outcomes import Outcome, Texts
from rlt_jobs.database import Database
from rlt_jobs.leases import Claimed

__all__ = ["Written", "run", "write"]

BATCHES: Final = (256, 1_024, 4_096)
WRITERS: Final = (1, 2, 4)
SECONDS: Final = 5.0
N: Final = 8
ROOM: Final = 1_000_000  # problems a writer has to itself
WARM: Final = 3  # flushes that compile statements and are not counted


@dataclass(frozen=True, slots=True)
class Task:
    """What one writer does."""

    url: str
    build: int
    scorer: int
    lo: int
    batch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Written:
    rows: int
    seconds: float
    cpu: float
    flushes: list[float]


def run(command: str) -> Record:
    record = Record("builds-flush", command, machine())
    made = texts(256, seed=1)
    with postgres() as url:
        for batch, writers in product(BATCHES, WRITERS):
            done = write(url, made, batch=batch, writers=writers, seconds=SECONDS)
            rows = sum(each.rows for each in done)
            record.add(
                f"{batch:,} rows a flush",
                f"{writers} at once",
                **{
                    "rows/s": rows / max(each.seconds for each in done),
                    "median ms": 1_000 * statistics.median(each for one in done for each in one.flushes),
                    "worker's µs of processor a row": 1e6 * sum(each.cpu for each in done) / rows,
                },
            )
    record.notes.append("a row is a sample, its score and 2,000 characters of text; each flush is one durable commit")
    record.notes.append("writers and Postgres share the cores")
    return record


def write(url: str, made: list[Texts], *, batch: int, writers: int, seconds: float) -> list[Written]:
    """Flush for so long from so many processes into one build, each into a shard of its own."""
    build, scorer = with_database(url, lambda database: _prepared(database, writers))
    processes = multiprocessing.get_context("fork")  # the texts are made once
    ready, results = processes.Barrier(writers), processes.SimpleQueue()
    tasks = [Task(url, build, scorer, index * ROOM, batch, seconds) for index in range(writers)]
    running = [processes.Process(target=lambda task=task: results.put(_write(task, made, ready))) for task in tasks]
    for process in running:
        process.start()
    done = [results.get() for _ in running]
    for process in running:
        process.join()
    return done


async def _prepared(database: Database, writers: int) -> tuple[int, int]:
    build = await add_build(database, problems=writers * ROOM, n=N, shard_samples=ROOM * N)
    return build, await pin(database, build)


def _write(task: Task, made: list[Texts], ready: Barrier) -> Written:
    most = max(2 * WARM, int(task.seconds * 40_000 / task.batch))
    step = task.batch // N
    batches = [outcomes(task.lo + index * step, task.batch, N, made) for index in range(most)]
    return with_database(task.url, lambda database: _flush_all(database, task, batches, ready))


async def _flush_all(database: Database, task: Task, batches: list[list[Outcome]], ready: Barrier) -> Written:
    lease = await hold(database, task.build, task.lo)
    for batch in batches[:WARM]:
        await _flush(database, lease, task.scorer, batch)
    ready.wait()
    began, processor = time.perf_counter(), time.process_time()
    rows, flushes = 0, []
    for batch in batches[WARM:]:
        at = time.perf_counter()
        rows += await _flush(database, lease, task.scorer, batch)
        flushes.append(time.perf_counter() - at)
        if time.perf_counter() - began > task.seconds:
            break
    return Written(rows, time.perf_counter() - began, time.process_time() - processor, flushes)


async def _flush(database: Database, lease: Claimed, scorer: int, batch: list[Outcome]) -> int:
    async with database.begin() as session:
        return await flush(session, lease, batch, scorer_id=scorer, seconds=1.0)
