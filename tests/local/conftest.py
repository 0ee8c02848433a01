"""Small stacks of throw-away Python programs, for the supervisor, and the command `rlt` in this process; nothing here
starts a server of the platform."""

from __future__ import annotations

import io
import os
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rlt_client.cli import app as app_module
from rlt_client.cli.output import console
from rlt_local.component import Component
from rlt_local.state import ComponentRecord, StackRecord, StateFolder
from rlt_local.supervisor import Supervisor
from rlt_service.probe import Probe

Script = Callable[..., Component]


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    state = StateFolder(tmp_path / "state")
    state.make()
    return state


@pytest.fixture
def script() -> Script:
    """A component that runs some lines of Python."""

    def make(name: str, code: str, *, ready: Probe | None = None, needs: tuple[str, ...] = (), **options) -> Component:
        argv = (sys.executable, "-u", "-c", textwrap.dedent(code))
        return Component(name, argv, ready=ready, needs=needs, **options)

    return make


@pytest.fixture
def stack(folder: StateFolder) -> Callable[..., tuple[Supervisor, StackRecord]]:
    def make(*components: Component, **options) -> tuple[Supervisor, StackRecord]:
        record = StackRecord(
            pid=os.getpid(),
            pid_created=psutil.Process().create_time(),
            urls={},
            key_file=str(folder.key_file),
            components={component.name: ComponentRecord(url=component.url) for component in components},
        )
        return Supervisor(components, folder, record, **options), record

    return make


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait for a condition, never for a time."""

    def wait(condition: Callable[[], object], *, seconds: float = 60) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, "the condition was not met in time"
            time.sleep(0.02)

    return wait


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def rlt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """The command in this process (its start is tested apart), with nothing of the caller's settings."""
    for name in [name for name in os.environ if name.startswith("RLT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> Done:
        console.cache_clear()
        monkeypatch.setattr("sys.argv", ["rlt", *arguments])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                app_module.run()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run
