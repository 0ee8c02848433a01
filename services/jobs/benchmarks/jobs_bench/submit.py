"""A million problems uploaded, submitted and imported, the build being watched meanwhile: memory over time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx

from jobs_bench.service import Service, service
from jobs_bench.world import texts
from rlt_bench.measure import Record, machine

__all__ = ["run"]

PROBLEMS: Final = 1_000_000
EVERY: Final = 100_000  # problems between two looks
PIECE: Final = 500  # lines sent at once
PATIENCE: Final = 3_600.0  # seconds; the import of a million takes minutes


def run(command: str) -> Record:
    record = Record("builds-submit", command, machine())
    with service(concurrency="1", max_upload_bytes=str(2**34)) as jobs, httpx.Client(base_url=jobs.url) as client:
        _look(record, jobs, "before", began=time.perf_counter(), done=0)
        upload = _upload(record, jobs, client)
        source = {"source": {"upload": upload}}
        reply = client.post("/builds", json={"dataset": "bench", "n": 8, **source})
        build = int(reply.raise_for_status().json()["id"])
        _watch(record, jobs, client, build)
    record.notes.append(
        f"{PROBLEMS:,} problems of 600 characters as JSON lines; the build and the list are read 5 times/s"
    )
    return record


def _upload(record: Record, jobs: Service, client: httpx.Client) -> str:
    began = time.perf_counter()

    def body() -> Iterator[bytes]:
        for first in range(0, PROBLEMS, PIECE):
            if first % EVERY == 0 and first:
                _look(record, jobs, "upload", began=began, done=first)
            yield b"".join(lines(first, first + PIECE))

    reply = client.post("/uploads", params={"name": "bench.jsonl"}, content=body(), timeout=PATIENCE)
    reply.raise_for_status()
    _look(record, jobs, "upload", began=began, done=PROBLEMS)
    return str(reply.json()["id"])


def lines(lo: int, hi: int) -> Iterator[bytes]:
    """Problems as JSON lines, no two the same."""
    said = [made.explanation or "" for made in texts(64, seed=2)]
    for idx in range(lo, hi):
        problem = {"question": f"{idx}: {said[idx % 64][:400]}", "answer": said[idx % 63][:200]}
        yield json.dumps(problem).encode() + b"\n"


def _watch(record: Record, jobs: Service, client: httpx.Client, build: int) -> None:
    began, seen = time.perf_counter(), 0
    while time.perf_counter() - began < PATIENCE:
        client.get("/builds", params={"limit": 100}).raise_for_status()
        found: dict[str, Any] = client.get(f"/builds/{build}").raise_for_status().json()
        done = int(found["counts"]["problems"])
        if done - seen >= EVERY or found["state"] != "importing":
            _look(record, jobs, "import", began=began, done=done)
            seen = done
        if found["state"] != "importing":
            assert found["state"] == "running", found
            return
        time.sleep(0.2)
    raise SystemExit("the import did not end in time")


def _look(record: Record, jobs: Service, case: str, *, began: float, done: int) -> None:
    seconds = time.perf_counter() - began
    memory = {"API MiB": jobs.api_mib(), "worker MiB": jobs.worker_mib()}
    record.add(case, f"{done:,} problems", **memory, **({"problems/s": done / seconds} if done else {}))
