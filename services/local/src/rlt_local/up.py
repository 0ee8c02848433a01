"""`rlt up`: the supervisor in this process, or in one of its own that outlives the terminal."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console

from rlt_client.errors import RLTError
from rlt_local.display import Screen, failure, over, summary
from rlt_local.logs import tail
from rlt_local.options import StackOptions
from rlt_local.plan import plan
from rlt_local.state import AlreadyRunning, StackRecord, StackState, StateFolder
from rlt_local.stop import is_alive
from rlt_local.supervisor import Changed, Supervisor

__all__ = ["StackFailed", "attached", "detached", "supervise"]

POLL = 0.1
LAST_WORDS = 5  # lines of a supervisor that could not even begin


class StackFailed(RLTError):
    """The stack did not come up; the message says which program, and why."""


async def supervise(options: StackOptions, folder: StateFolder, changed: Changed = lambda _: None) -> StackRecord:
    """Run a stack until it is told to stop.

    Raises:
        AlreadyRunning, PortTaken, DatabaseError, RLTError: it could not even begin.
    """
    with folder.locked():
        components, record = plan(options, folder, own_identity())
        supervisor = Supervisor(components, folder, record, changed=changed, start_timeout=options.start_timeout)
        await supervisor.run()
    return record


def own_identity() -> tuple[int, float]:
    """This process's number and the time it was started at: together never given out again."""
    return os.getpid(), psutil.Process().create_time()


def attached(options: StackOptions, folder: StateFolder, console: Console) -> None:
    """Run a stack here and show it, until Ctrl-C.

    Raises:
        StackFailed: a program ended before it was ready; everything was stopped.
    """
    record = asyncio.run(_attached(options, folder, console))
    _raise_if_failed(record, folder, console)


async def _attached(options: StackOptions, folder: StateFolder, console: Console) -> StackRecord:
    latest: StackRecord | None = None
    told = False

    with Screen(console) as screen:

        def changed(record: StackRecord) -> None:
            nonlocal latest, told
            latest = record
            screen(record)
            if record.state is StackState.ready and not told:
                told = True
                console.print(summary(record))
                console.print("Everything is ready. Ctrl-C stops it.", style="bold")

        running = asyncio.create_task(supervise(options, folder, changed))
        while not running.done():
            await asyncio.wait([running], timeout=None if told else POLL)
            if latest is not None and latest.state is StackState.starting:
                screen(latest)  # its clocks run
        return running.result()


def detached(options: StackOptions, folder: StateFolder, console: Console) -> StackRecord:
    """Start a stack that runs on by itself, and return once it is ready.

    Raises:
        StackFailed: a program ended before it was ready; everything was stopped.
        AlreadyRunning
    """
    if is_alive(folder.read()):
        raise AlreadyRunning(f"a stack is already running in {folder.root} (rlt status, rlt down)")
    folder.make()
    supervisor = _start_supervisor(options, folder)
    try:
        record = _follow(supervisor, folder, console)
    except BaseException:  # Ctrl-C above all: what is half started must not stay
        supervisor.terminate()
        supervisor.wait()
        raise
    _raise_if_failed(record, folder, console)
    return record


def _start_supervisor(options: StackOptions, folder: StateFolder) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rlt_local", str(folder.root), options.model_dump_json()]
    with folder.log("supervisor").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _follow(supervisor: subprocess.Popen[bytes], folder: StateFolder, console: Console) -> StackRecord:
    """Show the record until the stack is ready or the supervisor has ended."""
    created = psutil.Process(supervisor.pid).create_time()
    with Screen(console) as show:
        while True:
            ended = supervisor.poll() is not None
            record = folder.read()
            if record is not None and (record.pid, record.pid_created) == (supervisor.pid, created):
                show(record)
                if over(record) or record.state is StackState.ready:
                    return record
            elif ended:
                raise StackFailed("\n".join(tail(folder.log("supervisor"), LAST_WORDS)) or "the supervisor ended")
            if ended:
                raise StackFailed(f"the supervisor was ended; its log: {folder.log('supervisor')}")
            time.sleep(POLL)


def _raise_if_failed(record: StackRecord, folder: StateFolder, console: Console) -> None:
    if record.state is StackState.failed:
        console.print(failure(record))
        raise StackFailed(f"{record.error}; its log is in {folder.logs}")


def main(argv: list[str]) -> int:
    """`python -m rlt_local FOLDER OPTIONS`: the detached supervisor."""
    folder, options = StateFolder(Path(argv[0])), StackOptions.model_validate(json.loads(argv[1]))
    try:
        record = asyncio.run(supervise(options, folder))
    except RLTError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 1 if record.state is StackState.failed else 0
