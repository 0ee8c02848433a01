"""Parquet files, however many row groups they have and however large those are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_client.schemas.builds import BuildKind, Source
from rlt_jobs.builds.sources.arrow import BATCH_ROWS, kept_columns, pieces, rows_of, text_bytes
from rlt_jobs.builds.sources.lines import too_much
from rlt_jobs.builds.sources.rows import Position, Row, SourceError, check_columns

__all__ = ["rows"]

BUFFER = 2**20  # bytes read at once of each column, instead of whole row groups


def rows(file: IO[bytes], at: Position, source: Source, kind: BuildKind, most: int | None = None) -> Iterator[Row]:
    """The rows after the first `at.line`.

    Texts stay in the file's dictionaries until a row needs them: one text of megabytes may stand in every row.

    Args:
        most: bytes of text that the file may hold, each text as often as it stands there.

    Raises:
        SourceError: the file is damaged, cut off or empty, lacks a column, or holds more.
    """
    with _readable():
        reader = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
        texts = [column.path for column in map(reader.schema.column, range(len(reader.schema))) if _is_text(column)]
        reader = pq.ParquetFile(
            file, metadata=reader.metadata, buffer_size=BUFFER, pre_buffer=False, read_dictionary=texts
        )
    columns = kept_columns(reader.schema_arrow)
    check_columns(columns, source, kind)
    groups, line = _rest(reader.metadata, at.line)
    batches = reader.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns)
    read = 0
    while True:
        with _readable():
            batch = next(batches, None)
        if batch is None:
            return
        read += text_bytes(batch)
        if most is not None and read > most:
            raise too_much(most)
        before, line = line, line + batch.num_rows
        if line > at.line:
            known = max(0, at.line - before)
            for piece, first in pieces(batch.slice(known), before + known):
                yield from rows_of(piece, first)


def _is_text(column: pq.ColumnSchema) -> bool:
    return bool(column.physical_type == "BYTE_ARRAY" and column.logical_type.type == "STRING")


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
