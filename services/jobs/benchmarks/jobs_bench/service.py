"""The service as its users start it: API, relay and one worker, with a Postgres and a Valkey of their own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil

from jobs_bench.world import postgres
from rlt_bench.programs import memory_mib, started
from rlt_local.databases import Program, prepare_valkey, start
from rlt_local.ports import free

__all__ = ["Service", "service"]

START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Service:
    url: str
    api: int
    worker: int

    def api_mib(self) -> float:
        return memory_mib(self.api)

    def worker_mib(self) -> float:
        """Of the worker with its pool."""
        processes = [self.worker, *(child.pid for child in psutil.Process(self.worker).children(recursive=True))]
        return sum(memory_mib(pid) for pid in processes)


@contextmanager
def service(**settings: str) -> Iterator[Service]:
    """Settings are those of `rlt-jobs`, in lower case."""
    with TemporaryDirectory() as name, postgres() as database, ExitStack() as stack:
        folder = Path(name)
        [valkey_port, api_port] = free(2)
        valkey = stack.enter_context(
            start(prepare_valkey(folder / "valkey", valkey_port), folder / "valkey.log", die_with_caller=True)
        )
        valkey.wait_ready()
        given = {"database_url": database, "redis_url": valkey.url, "store": str(folder / "store"), **settings}
        env = {f"RLT_JOBS_{key.upper()}": value for key, value in given.items()} | {"OMP_NUM_THREADS": "1"}
        beats = {role: folder / f"{role}.alive" for role in ("relay", "worker")}
        url = f"http://127.0.0.1:{api_port}"
        argv = [sys.executable, "-m", "rlt_jobs"]
        quiet = ["--log-level", "warning"]
        api = stack.enter_context(
            started("api", [*argv, "api", "--port", str(api_port), *quiet], env, url, "/readyz", START_S)
        )
        pids = {}
        for role, beat in beats.items():
            words = ["env", *(f"{key}={value}" for key, value in env.items()), *argv, role, *quiet]
            program = Program(role, [*words, "--heartbeat-file", str(beat)], folder, url, beat.exists, signal.SIGTERM)
            running = stack.enter_context(start(program, folder / f"{role}.log", die_with_caller=True))
            running.wait_ready(START_S)
            pids[role] = running.process.pid
        yield Service(url, api, pids["worker"])
