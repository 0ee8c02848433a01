"""`rlt up` in the foreground, over a plan of throw-away programs: what it shows, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from rlt_local.state import StackState, StateFolder

UP = """
import sys
from pathlib import Path
from rich.console import Console
from rlt_local import up
from rlt_local.component import Component
from rlt_local.options import StackOptions
from rlt_local.state import ComponentRecord, StackRecord, StateFolder

PROGRAMS = {"steady": "import time; time.sleep(600)", "broken": "import sys; print('no such model'); sys.exit(3)"}

def plan(options, folder, supervisor):
    components = [Component(name, (sys.executable, "-u", "-c", PROGRAMS[name]), ready=ready(name)) for name in wanted]
    records = {each.name: ComponentRecord() for each in components}
    pid, created = supervisor
    return components, StackRecord(pid=pid, pid_created=created, urls={}, key_file="k", components=records)

def ready(name):
    async def probe():
        return None if name == "steady" else "waiting"
    return probe

folder, *wanted = sys.argv[1:]
up.plan = plan
try:
    up.attached(StackOptions(), StateFolder(Path(folder)), Console(width=100))
except up.StackFailed as error:
    sys.exit(f"rlt: error: {error}")
"""


def start(folder: Path, *programs: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(UP), str(folder), *programs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_it_is_told_to_stop(number: int, tmp_path: Path, until) -> None:
    folder = StateFolder(tmp_path)
    running = start(tmp_path, "steady")
    until(lambda: (record := folder.read()) and record.state is StackState.ready)
    program = folder.read().components["steady"].pid
    os.kill(running.pid, number)
    shown, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert "steady: ready" in shown
    assert "Everything is ready. Ctrl-C stops it." in shown
    assert shown.splitlines()[-1] == "Stopped."
    assert not psutil.pid_exists(program)


def test_a_crash_at_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    running = start(tmp_path, "steady", "broken")
    shown, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "broken ended with status 3 before it was ready\n  no such model" in shown
    assert errors == f"rlt: error: broken ended with status 3 before it was ready; its log is in {tmp_path / 'logs'}\n"
    assert StateFolder(tmp_path).read().state is StackState.failed


def test_a_second_one_in_the_same_folder_is_refused(tmp_path: Path, until) -> None:
    running = start(tmp_path, "steady")
    until(lambda: (record := StateFolder(tmp_path).read()) and record.state is StackState.ready)
    second = start(tmp_path, "steady")
    _, errors = second.communicate(timeout=60)
    assert "AlreadyRunning: a stack is already running in" in errors
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 0
