"""Parquet files, however many row groups they have and however large those are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_client.schemas.builds import BuildKind, Source
from rlt_jobs.builds.sources.arrow import BATCH_ROWS, kept_columns, rows_of
from rlt_jobs.builds.sources.rows import Position, Row, SourceError, check_columns

__all__ = ["rows"]

BUFFER = 2**20  # bytes read at once of each column, instead of whole row groups


def rows(file: IO[bytes], at: Position, source: Source, kind: BuildKind) -> Iterator[Row]:
    """The rows after the first `at.line`.

    Raises:
        SourceError: the file is damaged, cut off or empty, or lacks a column.
    """
    with _readable():
        reader = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
    columns = kept_columns(reader.schema_arrow)
    check_columns(columns, source, kind)
    groups, line = _rest(reader.metadata, at.line)
    batches = reader.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns)
    while True:
        with _readable():
            batch = next(batches, None)
        if batch is None:
            return
        before, line = line, line + batch.num_rows
        if line > at.line:
            known = max(0, at.line - before)
            yield from rows_of(batch.slice(known), before + known)


def _rest(metadata: pq.FileMetaData, read: int) -> tuple[list[int], int]:
    """The row groups that hold more than the first `read` rows, and how many rows come before them."""
    ends = list(accumulate(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)))
    first = next((index for index, end in enumerate(ends) if end > read), len(ends))
    return list(range(first, len(ends))), ends[first - 1] if first else 0


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise SourceError("unreadable_source", f"not a whole Parquet file: {error}") from error
