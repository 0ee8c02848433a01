"""Exports over HTTP: MB/s of each format while it is first written and once it is kept, and how the API answers
others meanwhile. The client reads and throws away; it and the API share the cores."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

import httpx
import psutil
import pyarrow as pa
from sqlalchemy import update

from jobs_bench.world import REVISION, add_build, postgres, texts, with_database
from rlt_bench.measure import Record, machine
from rlt_bench.programs import memory_mib, started
from rlt_client.formats import shipped_formats
from rlt_client.schemas.builds import ExportFormat, ExportShape
from rlt_jobs.builds.models import Build, Dataset
from rlt_jobs.database import Database
from rlt_jobs.store import repository
from rlt_jobs.store.files import Store, Stored
from rlt_jobs.store.traces import COMPACT, MANIFEST, open_writer, table
from rlt_local.ports import free
from rlt_service.auth import LOCAL

__all__ = ["run"]

ROWS: Final = 1_024  # of a row group
GROUPS: Final = 60
CHARACTERS: Final = 4_000  # of an explanation, and of its completion
N: Final = 8
AT_ONCE: Final = 4
WAYS: Final = (
    (ExportFormat.jsonl, ExportShape.messages),
    (ExportFormat.jsonl, ExportShape.raw),
    (ExportFormat.parquet, ExportShape.messages),
    (ExportFormat.parquet, ExportShape.raw),
    (ExportFormat.hf, ExportShape.messages),
)


def run(command: str) -> Record:
    record = Record("builds-export", command, machine())
    with TemporaryDirectory() as name, postgres() as database, _api(database, Path(name)) as api:
        version = with_database(database, lambda connected: _publish(connected, Store(Path(name))))
        asyncio.run(_measure(record, api, version))
    said = _texts(ExportShape.raw)
    record.notes.append(f"{GROUPS * ROWS:,} rows; {said:,.0f} MB of explanations and completions, all selected")
    record.notes.append("`MB/s of texts` counts what the rows say, not how small Parquet makes it")
    record.notes.append("the processor of this machine is shared by the API, the client and Postgres")
    return record


@dataclass(frozen=True, slots=True)
class _API:
    url: str
    pid: int


@contextmanager
def _api(database: str, store: Path) -> Iterator[_API]:
    [port] = free(1)
    url = f"http://127.0.0.1:{port}"
    env = {"RLT_JOBS_DATABASE_URL": database, "RLT_JOBS_STORE": str(store), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "rlt_jobs", "api", "--port", str(port), "--log-level", "warning"]
    with started("api", argv, env, url, "/readyz", 60.0) as pid:
        yield _API(url, pid)


async def _measure(record: Record, api: _API, version: int) -> None:
    async with httpx.AsyncClient(base_url=api.url, timeout=600) as client:
        idle = await _beside(client, asyncio.sleep(2, 0))
        record.add("no export", "", **_answers(idle))
        for format, shape in WAYS:
            said = _texts(shape)
            params = {"format": format.value, "shape": shape.value}
            for way, copies in (("written while it is sent", 1), ("kept", 1), (f"kept, {AT_ONCE} at once", AT_ONCE)):
                began, processor = time.perf_counter(), _processor(api.pid)
                together = asyncio.gather(*(_read(client, version, params) for _ in range(copies)))
                found = await _beside(client, together)
                seconds = time.perf_counter() - began
                record.add(
                    f"{format}, {shape}",
                    way,
                    **{
                        "MB/s of texts": copies * said / seconds,
                        "MB of texts a second of the API's processor": copies
                        * said
                        / (_processor(api.pid) - processor),
                        "MB/s sent": sum(together.result()) / 1e6 / seconds,
                        **_answers(found),
                        "API, MiB": memory_mib(api.pid),
                    },
                )


def _processor(pid: int) -> float:
    """Seconds that a process has computed: tells on a busy machine too."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def _texts(shape: ExportShape) -> float:
    """MB that the rows of a shape say."""
    return GROUPS * ROWS * CHARACTERS * (2 if shape is ExportShape.raw else 1) / 1e6


async def _read(client: httpx.AsyncClient, version: int, params: dict[str, str]) -> int:
    size = 0
    async with client.stream("GET", f"/versions/{version}/export", params=params) as reply:
        reply.raise_for_status()
        async for piece in reply.aiter_raw():
            size += len(piece)
    return size


async def _beside(client: httpx.AsyncClient, work: Any) -> list[float]:
    """Seconds that /livez took while `work` went on."""
    taken: list[float] = []

    async def look() -> None:
        while True:
            began = time.perf_counter()
            (await client.get("/livez")).raise_for_status()
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    await work
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking
    return taken


def _answers(taken: list[float]) -> dict[str, float]:
    ordered = sorted(1_000 * each for each in taken)
    return {"/livez ms, median": statistics.median(ordered), "/livez ms, p99": ordered[int(0.99 * len(ordered))]}


async def _publish(database: Database, store: Store) -> int:
    """A version of all samples of a build, as publishing would have left it. Returns its id."""
    build_id = await add_build(database, problems=GROUPS * ROWS // N, n=N, shard_samples=GROUPS * ROWS)
    traces = await asyncio.to_thread(_write, store, COMPACT, _traces(build_id))
    async with database.begin() as session:
        file_id = await repository.add_file(session, build_id, "compact", 0, GROUPS * ROWS // N, GROUPS * ROWS, traces)
    manifest = await asyncio.to_thread(_write, store, MANIFEST, _members(build_id, file_id))
    student = shipped_formats()["stratos"].student.model_dump()
    async with database.begin() as session:
        build = await session.get_one(Build, build_id)
        await session.execute(update(Dataset).where(Dataset.id == build.dataset_id).values(owner=LOCAL.owner))
        version = await repository.add_version(
            session,
            build.dataset_id,
            [file_id],
            build_id=build_id,
            selection={"mode": "all"},
            manifest_uri=manifest.uri,
            manifest_sha256=manifest.sha256,
            manifest_bytes=manifest.bytes,
            rows=GROUPS * ROWS,
            counts={"problems": GROUPS * ROWS // N},
            lineage={"format": {"name": "stratos", "hash": "", "student": student}},
        )
        return version.id


def _write(store: Store, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> Stored:
    with store.create(f"bench/{uuid4().hex}.parquet") as pending, open_writer(pending.writer, schema) as writer:
        while group := list(itertools.islice(rows, ROWS)):
            writer.write_table(table(group, schema))
    return pending.stored


def _traces(build_id: int) -> Iterator[dict[str, Any]]:
    """Explanations cut from one long text, so that making them takes seconds and no two are alike."""
    chance = random.Random(0)  # noqa: S311 the same texts in every run
    text = "\n".join(each.explanation or "" for each in texts(2_000, seed=0))
    for index in range(GROUPS * ROWS):
        begin = chance.randrange(len(text) - CHARACTERS)
        explanation = text[begin : begin + CHARACTERS]
        yield {
            "build_id": build_id,
            "problem": index // N,
            "sample_idx": index % N,
            "question_hash": b"q" * 32,
            "try": 0,
            "gen_status": "complete",
            "finish_reason": "stop",
            "policy_revision": REVISION,
            "prompt_tokens": 180,
            "completion_tokens": CHARACTERS // 4,
            "request_key": index.to_bytes(32, "big"),
            "explanation": explanation,
            "completion": explanation[::-1],
            "question": text[index // N * 200 :][:200],
            "answer": "42",
        }


def _members(build_id: int, file_id: int) -> Iterator[dict[str, Any]]:
    parts = dict.fromkeys(("ss_mean", "ss_min", "ss_sum", "kl_mean", "kl_max", "format"), -0.5)
    for index in range(GROUPS * ROWS):
        key = {"build_id": build_id, "problem": index // N, "sample_idx": index % N, "rank": index % N + 1}
        yield {**key, "file_id": file_id, "row": index, "reward": -index / 7, "n_answer": 3, "n_think": 900, **parts}
