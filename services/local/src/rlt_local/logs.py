"""Log files: their last lines, what is added to them, and what becomes of large ones."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from rlt_local.state import StateFolder

__all__ = ["LOG_LIMIT", "followed", "last_lines", "log_files", "set_aside", "tail"]

POLL = 0.2
LOG_LIMIT = 20 * 2**20  # a log larger than this is set aside (one generation) when its program starts again


def log_files(folder: StateFolder, name: str | None) -> list[Path]:
    """The log of one program, or those of all; none where there are none."""
    found = sorted(folder.logs.glob("*.log"))
    return [path for path in found if name in (None, path.stem)]


def last_lines(files: list[Path], lines: int) -> Iterator[tuple[Path, str]]:
    for path in files:
        for line in tail(path, lines) if lines else ():
            yield path, line


def followed(files: list[Path]) -> Iterator[tuple[Path, str]]:
    """Whole lines as they are written, for ever; a file that was set aside is read from its new beginning."""
    seen = {path: _size(path) for path in files}
    while True:
        for path in files:
            text, seen[path] = _since(path, seen[path])
            yield from ((path, line) for line in text.splitlines())
        time.sleep(POLL)


def _since(path: Path, position: int) -> tuple[str, int]:
    """The whole lines from `position` on, and where they end."""
    start = 0 if _size(path) < position else position
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace"), start + len(whole)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def set_aside(log: Path) -> None:
    """Give a large log another name."""
    if _size(log) > LOG_LIMIT:
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
