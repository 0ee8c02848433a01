"""One supervised program: its start, its end, and the guarantee that nothing of it stays behind.

Every program leads its own session and process group, so that a Ctrl-C in the terminal reaches the supervisor only and
a whole group can be killed. On Linux the kernel is asked (PR_SET_PDEATHSIG) to signal it when the supervisor dies.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rlt_local import warden

PR_SET_PDEATHSIG = 1
LOG_LIMIT = 20 * 2**20  # a log larger than this is set aside (one generation) when its program starts again


class Process:
    """A running program. `exit` is set to its exit status (negative: the signal that ended it)."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path, log_start: int) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.log = log
        self._log_start = log_start

    def reap(self) -> bool:
        """Look whether it has ended; then end what is left of its group too."""
        if self._popen.poll() is None:
            return False
        self.kill()
        if not self.exit.done():
            self.exit.set_result(self._popen.returncode)
        return True

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
            self._popen.send_signal(number)
            await asyncio.wait([self.exit], timeout=grace)
        self.kill()
        await self.ended()

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines that this run of the program has written."""
        return tail(self.log, lines, start=self._log_start)


class Children:
    """Starts programs and learns of their end. Use it in the main thread: the kernel ties PR_SET_PDEATHSIG to the
    thread that starts a program, and signals of ended children are handled there."""

    def __init__(self) -> None:
        self._running: set[Process] = set()
        self._warden: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        self._start_warden()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running:
            process.kill()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        if self._warden is not None:
            self._warden.communicate()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        death_signal: int = signal.SIGKILL,
    ) -> Process:
        """Start a program with its output appended to `log`.

        Raises:
            OSError: the program cannot be started.
        """
        _set_aside(log)
        with log.open("ab") as output:
            start = output.tell()
            popen = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_dies_with_parent(death_signal),
            )
        process = Process(popen, log, start)
        self._running.add(process)
        self._tell_warden(f"+{popen.pid}")
        return process

    def _reap(self) -> None:
        for process in list(self._running):
            if process.reap():
                self._running.discard(process)
                self._tell_warden(f"-{process.pid}")

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
        for process in self._running:
            self._tell_warden(f"+{process.pid}")


def _dies_with_parent(number: int) -> Callable[[], None] | None:
    """What a new program does before it becomes itself: ask the kernel for `number` when the supervisor dies."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return prepare


def _set_aside(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))


def tail(path: Path, lines: int, *, start: int = 0) -> list[str]:
    """The last lines of a text file, at most 64 kB of them, from the byte `start` on."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - 65_536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:]
