"""Memory of the server over 100,000 requests, no two alike."""

from __future__ import annotations

from typing import Final

from reward_bench.load import Load, apply
from reward_bench.server import running
from rlt_bench.measure import Record, machine

__all__ = ["run"]

STEPS: Final = 10
REQUESTS: Final = 10_000  # a step
CLIENTS: Final = 64
WORDS: Final = 60


def run(command: str) -> Record:
    record = Record("reward-memory", command, machine())
    with running(tokens_per_s=0.0) as server:
        for step in range(1, STEPS + 1):
            result = apply(Load(server.url, CLIENTS, requests=REQUESTS, words=WORDS, seed=step))
            if result.failed:
                raise SystemExit(f"{result.failed} requests failed: {result.first_failure}")
            figures = {"resident MiB": server.memory_mib(), "samples/s": result.rate}
            record.add("an engine that takes no time", f"after {step * REQUESTS:,} requests", **figures)
    return record
