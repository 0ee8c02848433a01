"""Processes that can be killed, frozen and started again, and the folder that is the store's disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from rlt_local.databases import Program, Running, start

__all__ = ["Disk", "Part", "python"]

DISK_MB = 64  # of the store: many times what a run writes, and filled in a moment
TESTS = Path(__file__).resolve().parents[1]


class Part:
    """One program under a name, running or not. What it writes is appended to one log over all its lives."""

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        self.lives = 0
        self._groups: list[int] = []
        self._running: Running | None = None

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def up(self) -> bool:
        return self._running is not None

    def start(self) -> None:
        self._running = start(self.program, self.log, die_with_caller=True)
        self._groups.append(self._running.process.pid)
        self.lives += 1

    def wait_ready(self, seconds: float = 180.0) -> None:
        assert self._running is not None
        self._running.wait_ready(seconds)

    def died(self) -> int | None:
        """The exit code of one that should be alive."""
        return self._running.process.poll() if self._running is not None else None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """The process and all its children, at once. Postgres tells its children itself."""
        self._strike(lambda pid: os.killpg(pid, number) if number is signal.SIGKILL else os.kill(pid, number))

    def orphan(self) -> None:
        """The main process only."""
        self._strike(lambda pid: os.kill(pid, signal.SIGKILL))

    def _strike(self, hit: Callable[[int], None]) -> None:
        assert self._running is not None
        running, self._running = self._running, None
        with suppress(ProcessLookupError):
            hit(running.process.pid)
        running.process.wait(60)  # a frozen or dying process needs its turn on a busy machine

    def kill_child(self) -> bool:
        """The youngest child; False where there is none at this moment."""
        found = self.children()
        for pid in found[-1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    def end(self, number: signal.Signals, seconds: float) -> int:
        """Ask the main process to end, as an orchestrator does, and wait for it. Its exit code.

        Raises `subprocess.TimeoutExpired`.
        """
        assert self._running is not None
        running, self._running = self._running, None
        running.process.send_signal(number)
        return running.process.wait(seconds)

    def signal_all(self, number: signal.Signals) -> None:
        assert self._running is not None
        with suppress(ProcessLookupError):
            os.killpg(self._running.process.pid, number)

    def children(self) -> list[int]:
        assert self._running is not None
        pid = self._running.process.pid
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except OSError:
            return []
        return sorted(map(int, text.split()))

    def left_behind(self) -> list[int]:
        """Processes of earlier lives that still run."""
        now = self._running.process.pid if self._running else None
        return [pid for group in self._groups if group != now for pid in _members(group)]

    def stop(self) -> None:
        """For good, with everything that any life of it left behind."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self._running is not None:
            self._running.process.wait(60)
            self._running = None


def _members(group: int) -> list[int]:
    found = subprocess.run(["pgrep", "-g", str(group)], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


def python(
    module: str, *args: str, name: str, cwd: Path, env: Mapping[str, str], ready: Callable[[], bool] = lambda: True
) -> Program:
    """A module of ours as a program, with the caller's import path."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
    argv = [shutil.which("env") or "env", *(f"{key}={value}" for key, value in given.items())]
    return Program(
        name=name,
        argv=[*argv, sys.executable, "-m", module, *args],
        cwd=cwd,
        url="",
        ready=ready,
        stop_signal=signal.SIGKILL,
    )


class Disk:
    """Where the store lies: a small file system of its own where that is allowed, so that it can be filled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self._away = root / "store.away"
        self._filler = root / "filler"
        self._mounted = False

    def make(self) -> None:
        self.root.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self.root)]
        self._mounted = os.getuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
        self.store.mkdir()

    def take_away(self) -> None:
        """The folder is gone: every open and every new file fails with ENOTDIR."""
        self.store.rename(self._away)
        self.store.write_text("not a folder")

    def bring_back(self) -> None:
        self.store.unlink()
        self._away.rename(self.store)

    def fill(self) -> None:
        """Until ENOSPC; where the disk is not ours alone, the folder is taken away instead."""
        if not self._mounted:
            self.take_away()
            return
        with suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))

    def empty(self) -> None:
        if self._mounted:
            self._filler.unlink()
        else:
            self.bring_back()

    def keep(self, to: Path) -> None:
        """Copy what the store holds, for whoever looks into a failure."""
        if self._mounted and self.store.is_dir():
            shutil.copytree(self.store, to, dirs_exist_ok=True)

    def remove(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.root)], check=False)
