"""A row as a source gives it, whatever the source is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rlt_client.errors import RLTError
from rlt_client.schemas.builds import BuildKind, Source

__all__ = ["START", "TEXTS", "Position", "Row", "SourceError", "check_columns", "column_of", "listed", "repeated"]

TEXTS = ("question", "answer", "system", "explanation")
MOST_NAMES = 100  # of columns in a message
MOST_NAME = 100  # characters of each


class SourceError(RLTError):
    """The source as a whole cannot be used, whatever its rows are. `type` is the stable name of the reason."""

    def __init__(self, type: str, detail: str) -> None:
        super().__init__(detail)
        self.type = type


class Position(NamedTuple):
    """How much of a source has been read."""

    line: int
    """Lines of JSONL and CSV; rows of Parquet and the hub."""
    offset: int
    """Bytes of JSONL and CSV, after decompression; 0 of Parquet and the hub."""


START = Position(0, 0)


class Row(NamedTuple):
    """One row, or why it is none."""

    line: int
    """The line where it begins, or the number of the row, from 1."""
    values: dict[str, Any] | None
    """By column, as JSON has them. Null where the row cannot be read."""
    why: str
    """What is wrong with a row that cannot be read."""
    end: Position
    """Where the next row is read from."""


def column_of(source: Source, name: str) -> str:
    """The source's name for one of `TEXTS`."""
    return source.columns.get(name, name)


def repeated(names: Iterable[str]) -> list[str]:
    """Those that stand there more than once."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


def listed(names: Sequence[str]) -> str:
    """For people, who read the first few: a hostile header has millions."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(repr(name[:MOST_NAME]) for name in names[:MOST_NAMES]) + more


def check_columns(names: Sequence[str], source: Source, kind: BuildKind) -> None:
    """Refuse a source that lacks what every row needs, or a column that was named. Raises `SourceError`."""
    needed = {"question", "explanation" if kind is BuildKind.score else "answer"}
    wanted = {name: column_of(source, name) for name in TEXTS if name in needed | source.columns.keys()}
    missing = [f"{column!r} (for {name})" for name, column in wanted.items() if column not in names]
    if missing:
        there = f"the columns are {listed(names)}"
        raise SourceError("missing_columns", f"there is no column {', '.join(missing)}; {there}")
