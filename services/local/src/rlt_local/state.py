"""The folder of one stack, and the record in it that says what runs: `stack.json`.

The supervisor alone writes the record, whole and atomically; `rlt status`, `rlt up --detach`, `rlt down` and the
client's commands read it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from rlt_client.errors import RLTError
from rlt_service.stack_keys import replace_file

DEFAULT = Path(".rlt")


class AlreadyRunning(RLTError):
    """Another supervisor holds this folder."""


class StackState(StrEnum):
    starting = "starting"
    ready = "ready"
    stopping = "stopping"
    stopped = "stopped"
    failed = "failed"
    """A program ended before it was ready, and the rest was stopped."""


class ComponentState(StrEnum):
    waiting = "waiting"
    """For the programs that it needs."""
    starting = "starting"
    ready = "ready"
    done = "done"
    """A task that has ended well."""
    restarting = "restarting"
    """It ended, and is started again after a pause."""
    stopped = "stopped"
    failed = "failed"


class ComponentRecord(BaseModel):
    state: ComponentState = ComponentState.waiting
    pid: int | None = None
    url: str | None = None
    started: float | None = Field(default=None, description="Unix time of the latest start")
    took: float | None = Field(default=None, description="seconds from the first start until it was ready")
    restarts: int = 0
    note: str = Field(default="", description="what it waits for, or why it ended")


class StackRecord(BaseModel):
    """`stack.json`. `urls` and `key_file` are what `rlt explain`, `rlt score` and `rlt build` read of it."""

    schema_version: int = 1
    state: StackState = StackState.starting
    pid: int = Field(description="the supervisor's")
    pid_created: float = Field(description="Unix time of that process's start: its number may be given out again")
    started: float = Field(default_factory=time.time)
    urls: dict[str, str]
    key_file: str
    options: dict[str, str | int | None] = Field(default_factory=dict)
    components: dict[str, ComponentRecord] = Field(default_factory=dict)
    error: str | None = None
    error_log: list[str] = Field(default_factory=list, description="last lines of the program that failed")


class StateFolder:
    """Where everything of one stack lies. Made on first use, for its owner only."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.logs = self.root / "logs"
        self.record_file = self.root / "stack.json"
        self.key_file = self.root / "keys" / "local.key"

    def make(self) -> None:
        for folder in (self.root, self.logs, self.key_file.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def read(self) -> StackRecord | None:
        """The record, or None where no stack was ever started here (or the record is not one)."""
        try:
            return StackRecord.model_validate_json(self.record_file.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def write(self, record: StackRecord) -> None:
        replace_file(self.record_file, record.model_dump_json(indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: one supervisor at a time.

        Raises:
            AlreadyRunning: another one does.
        """
        self.make()
        descriptor = os.open(self.root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise AlreadyRunning(f"a stack is already running in {self.root} (rlt status, rlt down)") from None
        finally:
            os.close(descriptor)
