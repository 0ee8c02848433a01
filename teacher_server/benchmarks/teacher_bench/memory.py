"""Memory of the service while 500 streams run at once, again and again."""

from __future__ import annotations

from typing import Final

from rlt_bench.measure import Record, machine
from teacher_bench import server
from teacher_bench.load import Load, apply

__all__ = ["run"]

CLIENTS: Final = 500
STEPS: Final = 8
STREAMS: Final = 2_500  # a step
TOKENS: Final = 100
INTERVAL: Final = 4


def run(command: str) -> Record:
    record = Record("teacher-memory", command, machine())
    with (
        server.model() as folder,
        server.paced(folder, interval=INTERVAL) as engine,
        server.teacher(folder, engine) as teacher,
    ):
        for step in range(1, STEPS + 1):
            result = apply(Load(teacher.url, CLIENTS, 3.0, streams=STREAMS, max_tokens=TOKENS, seed=step))
            if result.failed:
                raise SystemExit(f"{result.failed} streams failed: {result.first_failure}")
            figures = {"resident MiB": teacher.memory_mib(), "tokens/s": result.tokens_per_s}
            record.add(f"{CLIENTS} streams at once", f"after {step * STREAMS:,} streams", **figures)
    return record
