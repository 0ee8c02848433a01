"""JSON lines: one object a line. Blank lines are nobody's rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import pydantic_core

from rlt_jobs.builds.sources import lines
from rlt_jobs.builds.sources.lines import Lines
from rlt_jobs.builds.sources.rows import Position, Row

__all__ = ["rows"]


def rows(file: IO[bytes], at: Position) -> Iterator[Row]:
    """The rows of plain text from a position on.

    Raises:
        SourceError: blank lines without an end.
    """
    reader, blank = Lines(file, at), 0
    while raw := reader.read():
        if not raw.strip():
            blank += 1
            lines.check_blank(blank, reader.position.line)
            continue
        blank = 0
        end = reader.position
        try:
            yield Row(end.line, _object(raw, too_long=reader.too_long), "", end)
        except ValueError as error:
            yield Row(end.line, None, str(error), end)


def _object(raw: bytes, *, too_long: bool) -> dict[str, Any]:
    """Raises `ValueError` with what is wrong, for people."""
    if too_long:
        raise ValueError(f"the line is longer than {lines.MAX_LINE} bytes")
    try:
        row = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"not an object but {type(row).__name__}")
    return row
