"""ONE whole stack for the session: every program of the platform, tiny models, the embedded engine, free ports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from plugins.traces import Collector

from rlt_client import JobsClient, RewardClient, TeacherClient
from rlt_local.ports import free
from rlt_local.state import StackRecord, StateFolder

RLT = Path(sys.executable).with_name("rlt")


@dataclass(frozen=True)
class Stack:
    """A running stack, as its user meets it."""

    folder: StateFolder
    work: Path

    @property
    def record(self) -> StackRecord:
        record = self.folder.read()
        assert record is not None
        return record

    @property
    def key(self) -> str:
        return self.folder.key_file.read_text().strip()

    def url(self, server: str) -> str:
        return self.record.urls[server]

    def pid(self, component: str) -> int:
        pid = self.record.components[component].pid
        assert pid is not None
        return pid

    def rlt(self, *arguments: str, status: int = 0, stdin: str | None = None) -> str:
        """Run a command against the stack; its standard output (and error, where it must fail)."""
        done = run(*arguments, state=self.folder.root, cwd=self.work, stdin=stdin)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stdout + done.stderr

    def processes(self) -> list[psutil.Process]:
        """Every process of the stack, the supervisor first."""
        supervisor = psutil.Process(self.record.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.logs.iterdir())


# A lost lease is noticed within seconds rather than within the 20 that suit people.
QUICK = {"RLT_JOBS_LEASE_SECONDS": "4", "RLT_JOBS_HEARTBEAT_SECONDS": "1", "RLT_JOBS_REAP_SECONDS": "0.5"}


def run(
    *arguments: str,
    cwd: Path,
    state: Path | None = None,
    stdin: str | None = None,
    timeout: float = 240,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """The installed command, with nothing of the caller's own settings."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("RLT_") or name == "RLT_CACHE"
    }
    env = {**inherited, **(env or {})}
    env |= QUICK | {"NO_COLOR": "1", "COLUMNS": "140"} | ({"RLT_STATE": str(state)} if state else {})
    command = [str(RLT), *arguments]
    return subprocess.run(command, env=env, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(name="run")
def run_fixture() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run


@pytest.fixture(scope="session")
def metrics_ports() -> dict[str, int]:
    """Where the stack's worker and relay give out their metrics."""
    return dict(zip(("worker", "relay"), free(2), strict=True))


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector, metrics_ports: dict[str, int]
) -> Iterator[Stack]:
    """It is traced, by `collector`."""
    ports = {"RLT_JOBS_METRICS_PORT": metrics_ports["worker"], "RLT_JOBS_RELAY_METRICS_PORT": metrics_ports["relay"]}
    env = collector.environment() | {name: str(port) for name, port in ports.items()}
    root = tmp_path_factory.mktemp("stack")
    made = Stack(StateFolder(root / "state"), root)
    started = run("up", "--detach", "--ports", "free", state=made.folder.root, cwd=root, env=env)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield made
    finally:
        run("down", state=made.folder.root, cwd=root)


@pytest.fixture(scope="session")
def problems(stack: Stack) -> Path:
    """60 problems as JSON lines."""
    file = stack.work / "problems.jsonl"
    command = [sys.executable, "-m", "rlt_trainer", "tiny", "problems", "--count", "60", "--traces", "--out", str(file)]
    subprocess.run(command, check=True)
    return file


@pytest.fixture(scope="session")
def first(problems: Path) -> dict[str, str]:
    """The first problem, with a good trace and one that leaks the answer."""
    return json.loads(problems.read_text().splitlines()[0])


@pytest.fixture
def teacher(stack: Stack) -> Iterator[TeacherClient]:
    with TeacherClient(stack.url("teacher"), key=stack.key) as client:
        yield client


@pytest.fixture
def reward(stack: Stack) -> Iterator[RewardClient]:
    with RewardClient(stack.url("reward"), key=stack.key) as client:
        yield client


@pytest.fixture
def jobs(stack: Stack) -> Iterator[JobsClient]:
    with JobsClient(stack.url("jobs"), key=stack.key) as client:
        yield client


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait for a condition, never for a time."""

    def wait(condition: Callable[[], object], *, seconds: float = 60.0, why: Callable[[], str] = str) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, why() or "the condition was not met in time"
            time.sleep(0.05)

    return wait
