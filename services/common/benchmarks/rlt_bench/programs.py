"""Starts what is measured as the local stack does, in processes of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil

from rlt_local.databases import Program, start

__all__ = ["memory_mib", "started"]


def memory_mib(pid: int) -> float:
    """Resident memory of one process."""
    return float(psutil.Process(pid).memory_info().rss / 2**20)


@contextmanager
def started(
    name: str, argv: Sequence[str], env: Mapping[str, str], url: str, ready: str, seconds: float
) -> Iterator[int]:
    """A program whose path `ready` answers; gives its process id. Raises `DatabaseError` with its last words."""
    words = ["env", *(f"{key}={value}" for key, value in env.items()), *argv]
    program = Program(name, words, Path.cwd(), url, lambda: _answers(f"{url}{ready}"), signal.SIGTERM)
    with TemporaryDirectory() as folder, start(program, Path(folder) / "log", die_with_caller=True) as running:
        running.wait_ready(seconds)
        yield running.process.pid


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False
