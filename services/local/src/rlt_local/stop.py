"""`rlt down`: ask the supervisor to stop everything, and make sure of it."""

from __future__ import annotations

import os
import signal
import time

import psutil

from rlt_local.state import ComponentState, StackRecord, StackState, StateFolder

__all__ = ["is_alive", "stop"]

PATIENCE = 60.0  # all graces of one stack together are shorter
AFTERMATH = 5.0  # the warden's grace, and a little
POLL = 0.05
SAME = 0.01  # seconds: create_time is read from the same clock, in ticks of 10 ms


def is_alive(record: StackRecord | None) -> bool:
    """Whether the supervisor that wrote this record still runs."""
    if record is None:
        return False
    try:
        process = psutil.Process(record.pid)
        return abs(process.create_time() - record.pid_created) <= SAME and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop(folder: StateFolder, *, patience: float = PATIENCE) -> bool:
    """Stop the stack of this folder. Returns False where none was running; safe to call again.

    A supervisor that does not end within `patience` seconds is killed: the kernel and the warden end its programs.
    """
    record = folder.read()
    if record is None or not is_alive(record):
        _await_programs(record)
        _settle(folder, record)
        return False
    os.kill(record.pid, signal.SIGTERM)
    if not _gone(record, patience):
        os.kill(record.pid, signal.SIGKILL)
        _gone(record, patience)
    left = folder.read()
    _await_programs(left)
    _settle(folder, left)
    return True


def _gone(record: StackRecord, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while is_alive(record):
        if time.monotonic() > limit:
            return False
        time.sleep(POLL)
    return True


def _await_programs(record: StackRecord | None) -> None:
    """After a SIGKILL the warden needs a moment. It alone kills: a number in an old record may be anyone's by now."""
    if record is None or record.state in (StackState.stopped, StackState.failed):
        return
    pids = [component.pid for component in record.components.values() if component.pid]
    limit = time.monotonic() + AFTERMATH
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < limit:
        time.sleep(POLL)


def _settle(folder: StateFolder, record: StackRecord | None) -> None:
    """A killed supervisor leaves a record that says `ready`: put it right."""
    if record is None or record.state in (StackState.stopped, StackState.failed):
        return
    record.state = StackState.stopped
    for component in record.components.values():
        component.state, component.pid = ComponentState.stopped, None
    folder.write(record)
