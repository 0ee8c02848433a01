"""CSV as RFC 4180 has it: commas, a header, quoted fields that may hold line breaks. An empty field is no value."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import IO

from rlt_client.schemas.builds import BuildKind, Source
from rlt_jobs.builds.sources import lines
from rlt_jobs.builds.sources.lines import Lines
from rlt_jobs.builds.sources.rows import START, Position, Row, SourceError, check_columns, listed, repeated

__all__ = ["rows"]


_BROKEN = '"x'
"""What no quoted field may hold, and only there does a record go on in another line: the reader gives it up."""


def rows(file: IO[bytes], at: Position, source: Source, kind: BuildKind) -> Iterator[Row]:
    """The rows of plain text from a position on; each has the line that it begins in.

    Raises:
        SourceError: no header, a column that stands in it twice, or one that is missing; blank lines without an end.
    """
    csv.field_size_limit(lines.MAX_LINE)  # the module's own limit would refuse long texts
    header = _Records(file, START)
    names = _names(header)
    check_columns(names, source, kind)
    records, blank = _Records(file, max(at, header.position)), 0
    while True:
        line = records.position.line + 1
        try:
            fields = records.read()
        except ValueError as error:
            yield Row(line, None, _where(str(error), line, records.position.line), records.position)
            continue
        if fields is None:
            return
        blank = 0 if fields else blank + 1
        lines.check_blank(blank, line)
        if fields:
            yield _row(line, names, fields, records.position)


def _row(line: int, names: Sequence[str], fields: Sequence[str], end: Position) -> Row:
    if len(fields) != len(names):
        return Row(line, None, f"has {len(fields)} fields, and the header has {len(names)}", end)
    values = {name: field for name, field in zip(names, fields, strict=True) if field}
    return Row(line, values, "", end)


def _names(header: _Records) -> list[str]:
    try:
        names = header.read()
        while names == []:
            names = header.read()
    except ValueError as error:
        raise SourceError("bad_header", f"the header is {error}") from error
    if names is None:
        raise SourceError("empty_source", "the file has no header line")
    if twice := repeated(names):
        raise SourceError("duplicate_columns", f"columns that stand in the header twice: {listed(twice)}")
    return names


def _where(why: str, first: int, last: int) -> str:
    return why if last <= first else f"{why} (lines {first} to {last})"


class _Records:
    """Records of the file, each read whole before the next one's lines are touched."""

    def __init__(self, file: IO[bytes], at: Position) -> None:
        self._lines = Lines(file, at)
        self._why = ""
        self._size = 0
        """Bytes of this record so far."""
        self._reader = csv.reader(self._text(), strict=True)

    @property
    def position(self) -> Position:
        return self._lines.position

    def read(self) -> list[str] | None:
        """The next record's fields, [] for a blank line, None at the end. Raises `ValueError` with what is wrong."""
        self._why, self._size = "", 0
        try:
            fields = next(self._reader, None)
        except csv.Error as error:
            raise ValueError(f"not CSV: {self._why or error}") from error
        if self._why:
            raise ValueError(f"not CSV: {self._why}")
        return fields

    def _text(self) -> Iterator[str]:
        while raw := self._lines.read():
            self._size += len(raw)
            if self._size > lines.MAX_LINE:
                self._why = f"a row is longer than {lines.MAX_LINE} bytes: is a quote not closed?"
                yield _BROKEN
                continue
            if self._lines.too_long:
                self._why = f"a line is longer than {lines.MAX_LINE} bytes"
            try:
                yield raw.decode()
            except UnicodeDecodeError as error:
                self._why = f"not UTF-8: {error.reason} at byte {error.start} of the line"
                yield raw.decode(errors="replace")
