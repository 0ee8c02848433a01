"""Rows as problems of a build."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pydantic import ValidationError

from rlt_client.formats import Format, FormatError
from rlt_client.schemas.builds import BuildKind, BuildProblem, Source
from rlt_jobs.builds.sources.rows import TEXTS, Position, Row, column_of
from rlt_jobs.builds.sources.traces import TraceReader

__all__ = ["Batch", "ProblemReader", "batches"]

BATCH_CHARS = 32 * 2**20  # of texts in memory at once, however long the rows are


class ProblemReader:
    """Makes problems of a source's rows.

    Args:
        source: whose columns are named there.
        kind: `score` takes an explanation with each row, out of its tags where it has some; `generate` has no use for
            one and keeps it as meta.
        formats, format: all known prompt formats, and the name of the build's own.
        max_chars: of one text.
    """

    def __init__(
        self, source: Source, kind: BuildKind, formats: Mapping[str, Format], format: str | None, max_chars: int
    ) -> None:
        self._kind = kind
        self._columns = {name: column_of(source, name) for name in TEXTS}
        if kind is BuildKind.generate:
            del self._columns["explanation"]
        self._traces = TraceReader(formats, format)
        self._max_chars = max_chars

    def read(self, values: dict[str, Any]) -> BuildProblem:
        """Takes `values` apart. Raises `ValueError` with what is wrong, for people."""
        found = {name: values.pop(column) for name, column in self._columns.items() if column in values}
        try:
            if self._kind is BuildKind.score:
                found |= self._traced(found)
            problem = BuildProblem(**found, meta=_meta(values))
        except ValidationError as error:
            raise ValueError(_first(error)) from error
        self._check_lengths(problem)
        return problem

    def _traced(self, found: Mapping[str, Any]) -> dict[str, Any]:
        text = found.get("explanation")
        if not isinstance(text, str):
            raise ValueError("explanation: kind score takes a text to score")
        try:
            trace = self._traces.read(text)
        except FormatError as error:
            raise ValueError(f"explanation: {error}") from error
        answer = found.get("answer")
        if answer is None and trace.answer is not None:
            answer = trace.answer
        return {"explanation": trace.explanation, **({} if answer is None else {"answer": answer})}

    def _check_lengths(self, problem: BuildProblem) -> None:
        for name in TEXTS:
            if len(getattr(problem, name) or "") > self._max_chars:
                raise ValueError(f"{name}: longer than {self._max_chars} characters")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"


def _meta(rest: dict[str, Any]) -> dict[str, Any] | None:
    """The fields that are not read; a lone object `meta` stands for itself."""
    if rest.keys() == {"meta"} and isinstance(rest["meta"], dict):
        return dict(rest["meta"])
    return rest or None


@dataclass
class Batch:
    """Some rows of a source, read."""

    end: Position
    """Where the next batch begins."""
    problems: list[BuildProblem] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    """Line or number of the row, from 1, and what is wrong with it."""
    chars: int = 0
    """Of the problems' texts."""
    ended: bool = False

    def add(self, row: Row, reader: ProblemReader) -> None:
        self.end = row.end
        if row.values is None:
            self.bad.append((row.line, row.why))
            return
        try:
            problem = reader.read(row.values)
        except ValueError as error:
            self.bad.append((row.line, str(error)))
            return
        self.problems.append(problem)
        self.chars += sum(len(getattr(problem, name) or "") for name in TEXTS)

    def is_full(self, most_rows: int) -> bool:
        return len(self.problems) + len(self.bad) >= most_rows or self.chars >= BATCH_CHARS


def batches(
    rows: Iterator[Row], reader: ProblemReader, start: Position, *, most_rows: int, limit: int | None
) -> Iterator[Batch]:
    """All rows, or the first `limit` of them, in batches of at most `most_rows`; the last one says so."""
    batch = Batch(start)
    for row in islice(rows, limit):
        if batch.is_full(most_rows):
            yield batch
            batch = Batch(batch.end)
        batch.add(row, reader)
    batch.ended = True
    yield batch
