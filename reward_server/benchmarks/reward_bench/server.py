"""Starts a reward server as its users do, and reads what it counts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from rlt_bench.programs import memory_mib, started
from rlt_local.ports import free

__all__ = ["Server", "running"]

ROOT: Final = Path(__file__).resolve().parents[3]
STUDENT: Final = ROOT / "tests" / "reward_server" / "golden" / "student"
START_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    pid: int

    def busy_seconds(self) -> float:
        """Time that the engine has been running batches."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("rlt_reward_batch_seconds_sum"))

    def memory_mib(self) -> float:
        return memory_mib(self.pid)


@contextmanager
def running(*, tokens_per_s: float | None) -> Iterator[Server]:
    """The golden student behind a free port; `tokens_per_s` None is the real engine."""
    [port] = free()
    program = ["rlt_reward_server"] if tokens_per_s is None else ["reward_bench.paced", str(tokens_per_s)]
    argv = [sys.executable, "-m", *program, "--student", str(STUDENT), "--port", str(port), "--log-level", "warning"]
    url = f"http://127.0.0.1:{port}"
    with started("reward server", argv, {"OMP_NUM_THREADS": "1"}, url, "/readyz", START_S) as pid:
        yield Server(url, pid)
