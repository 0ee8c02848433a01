"""Tokens a second of whole builds against the same engine driven bare, at the same number of requests under way.

Paced: an engine that keeps vLLM's pace and computes nothing, so that what is missing is the pipeline's doing. Real:
the teacher server's own engine computes on the cores that the pipeline runs on, and each takes from the other.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx

from jobs_bench.service import service
from rlt_bench.measure import Record, machine
from rlt_jobs.settings import Settings
from rlt_teacher_server.settings import IN_PROCESS
from teacher_bench import server
from teacher_bench.load import OPERATIONS, Load, Result, apply

__all__ = ["run"]

WAIT_S: Final = 1_200.0
SCORER_TOKENS_PER_S: Final = 25_000.0  # a 7B student on one H100, by its operations


@dataclass(frozen=True, slots=True)
class Case:
    """`rounds`: samples for each place, so that begin and end weigh little."""

    name: str
    processes: int
    rounds: int
    tokens: int
    step_s: float
    """Of the paced engine; 0: the real one."""


CASES: Final = (
    Case("paced, 83 tokens/s a sequence alone", 1, 24, 200, 0.012),
    Case("paced, 25 tokens/s a sequence alone", 4, 16, 200, 0.040),  # of the order of a 32B model
    Case("real, 87 words, 147k parameters", 1, 8, 100, 0.0),
)


def run(command: str) -> Record:
    record = Record("builds-throughput", command, machine())
    with server.model() as folder:
        for case in CASES:
            (_paced if case.step_s else _real)(record, case, folder)
    defaults = Settings(database_url="postgresql+psycopg://nobody/nothing")
    record.notes.append(
        f"default settings but for the processes: {defaults.max_in_flight} requests a process at most, "
        f"{defaults.shard_samples} samples a shard; a build is timed from its first shard to the last sealed one"
    )
    return record


def _paced(record: Record, case: Case, folder: Path) -> None:
    pace = {"step_s": case.step_s, "shortest": case.tokens, "longest": case.tokens}
    with server.paced(folder, **pace) as engine, server.teacher(folder, engine) as teacher:
        bare = _load(case, engine, server.prompt(folder))
        _compare(record, case, folder, teacher.url, bare)


def _real(record: Record, case: Case, folder: Path) -> None:
    with server.teacher(folder, IN_PROCESS) as teacher:
        _compare(record, case, folder, teacher.url, _load(case, teacher.url, ()))


def _load(case: Case, url: str, prompt: tuple[int, ...]) -> Load:
    places = _places(case)
    return Load(url, places, 0.0, streams=places * case.rounds, max_tokens=case.tokens, prompt=prompt)


def _places(case: Case) -> int:
    most: int = Settings.model_fields["max_in_flight"].default
    return case.processes * most


def _compare(record: Record, case: Case, folder: Path, teacher: str, load: Load) -> None:
    bare: Result = apply(load)
    if bare.failed:
        raise SystemExit(f"{bare.failed} bare requests failed: {bare.first_failure}")
    with server.scoring(folder, SCORER_TOKENS_PER_S) as reward:
        built = _build(case, teacher, reward.url)
    at_once = {"requests at once": _places(case)}
    record.add(case.name, "engine alone", **at_once, **{"tokens/s": bare.tokens_per_s})
    share = 100 * built / bare.tokens_per_s
    record.add(case.name, "build", **at_once, **{"tokens/s": built, "% of the engine alone": share})


def _build(case: Case, teacher: str, reward: str) -> float:
    """Tokens a second of one build."""
    settings = {"teacher_url": teacher, "reward_url": reward, "concurrency": str(case.processes)}
    with service(**settings) as jobs, httpx.Client(base_url=jobs.url, timeout=60) as api:
        upload = api.post("/uploads", content=_problems(case), headers={"content-type": "application/jsonl"})
        sampling = {"max_tokens": case.tokens}
        request = {"dataset": "bench", "source": {"upload": upload.json()["id"]}, "n": 4, "sampling": sampling}
        build = api.post("/builds", json=request).json()
        deadline = time.monotonic() + WAIT_S
        while build["state"] in ("importing", "running"):
            if time.monotonic() > deadline:
                raise SystemExit(f"the build does not end: {build}")
            time.sleep(0.2)
            build = api.get(f"/builds/{build['id']}").json()
        return _rate(build)


def _rate(build: dict[str, Any]) -> float:
    """From the import's end to the last sealed shard."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(build["started_at"])).total_seconds()
    if build["state"] not in ("finishing", "done") or build["counts"]["gen"]["complete"] == 0:
        raise SystemExit(f"the build did not go well: {build}")
    return float(build["counts"]["completion_tokens"]) / seconds


def _problems(case: Case) -> bytes:
    draw = random.Random(case.name)  # noqa: S311 the same problems in every run
    count = _places(case) * case.rounds // 4
    return "".join(
        f'{{"question": "{_question(draw)}", "answer": "{draw.randrange(61)}"}}\n' for _ in range(count)
    ).encode()


def _question(draw: random.Random) -> str:
    return f"Q {draw.randrange(61)} " + " ".join(f"{letter} {draw.choice(OPERATIONS)}" for letter in "ABCDEFGH")
