"""Programs that a process starts and looks after: their start, their end, and that nothing of them stays behind.

Every program leads its own session and process group, so that a Ctrl-C in the terminal reaches its parent only and a
whole group can be killed. On Linux the kernel is asked (PR_SET_PDEATHSIG) to signal it when its parent dies; a warden,
a process of its own, then ends what is left of the groups.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Self

from rlt_service import warden

__all__ = ["Child", "Children", "Pauses", "ending"]

PR_SET_PDEATHSIG: Final = 1


class Child:
    """A running program. `exit` is done when it has ended: its exit status (negative: the signal that ended it)."""

    def __init__(self, process: asyncio.subprocess.Process, gone: Callable[[Child], None]) -> None:
        self._process = process
        self._gone = gone
        self.pid = process.pid
        self.output = process.stdout
        """What it writes, where it was started with `output=PIPE`."""
        self.exit: asyncio.Task[int] = asyncio.create_task(self._watch(), name=f"process {process.pid}")

    async def _watch(self) -> int:
        status = await self._process.wait()
        self.kill()  # what is left of its group
        self._gone(self)
        return status

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # gone; or nothing but dead processes (macOS says EPERM)
            return

    async def ended(self) -> int:
        """Wait for its end; the exit status. (Awaiting `exit` itself would cancel it together with the caller.)"""
        await asyncio.wait([self.exit])
        return self.exit.result()

    async def stop(self, number: int, grace: float) -> None:
        """Ask the program itself to end; kill its group after `grace` seconds."""
        if not self.exit.done():
            with suppress(ProcessLookupError):  # it has ended, and `exit` is about to say so
                self._process.send_signal(number)
            await asyncio.wait([self.exit], timeout=grace)
        self.kill()
        await self.ended()


class Children:
    """Starts programs, and ends those that still run when it is left. The kernel ties PR_SET_PDEATHSIG to the thread
    that starts a program: use it in one that lives as long as they should."""

    def __init__(self) -> None:
        self._running: set[Child] = set()
        self._warden: subprocess.Popen[str] | None = None

    async def __aenter__(self) -> Self:
        self._start_warden()
        return self

    async def __aexit__(self, *_: object) -> None:
        running = list(self._running)
        for child in running:
            child.kill()
        for child in running:
            await child.ended()
        if self._warden is not None:
            self._warden.communicate()

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        output: int | IO[bytes] = asyncio.subprocess.PIPE,
        death_signal: int = signal.SIGKILL,
    ) -> Child:
        """Start a program. `output` takes what it writes to stdout and stderr; a pipe must be read (`Child.output`).

        Raises:
            OSError: the program cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_dies_with_parent(death_signal),
        )
        child = Child(process, self._forget)
        self._running.add(child)
        self._tell_warden(f"+{child.pid}")
        return child

    def _forget(self, child: Child) -> None:
        self._running.discard(child)
        self._tell_warden(f"-{child.pid}")

    def _tell_warden(self, line: str) -> None:
        if self._warden is None or self._warden.stdin is None:
            return
        try:
            self._warden.stdin.write(line + "\n")
            self._warden.stdin.flush()
        except BrokenPipeError:  # someone killed it: a new one takes over
            self._start_warden()

    def _start_warden(self) -> None:
        self._warden = subprocess.Popen(
            [sys.executable, "-I", "-S", warden.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        for child in self._running:
            self._tell_warden(f"+{child.pid}")


class Pauses:
    """How long a program that ended stays down before it is started again: twice as long each time, until one start
    was good for a while.

    Args:
        first, longest: seconds.
        steady: seconds that a good one ran.
    """

    def __init__(self, first: float = 0.5, longest: float = 30.0, steady: float = 60.0) -> None:
        self._first = self._next = first
        self._longest = longest
        self._steady = steady

    def after(self, ran: float) -> float:
        """The pause after a run of so many seconds."""
        pause = self._first if ran > self._steady else self._next
        self._next = min(pause * 2, self._longest)
        return pause


def ending(status: int) -> str:
    """An exit status in words."""
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _dies_with_parent(number: int) -> Callable[[], None] | None:
    """What a new program does before it becomes itself: ask the kernel for `number` when its parent dies."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return prepare
