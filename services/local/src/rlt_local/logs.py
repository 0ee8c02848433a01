"""`rlt logs`: the last lines of log files, and what is added to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rlt_local.process import tail
from rlt_local.state import StateFolder

__all__ = ["followed", "last_lines", "log_files"]

POLL = 0.2


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
