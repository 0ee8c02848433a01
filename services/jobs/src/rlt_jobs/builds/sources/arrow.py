"""Rows out of Arrow tables, as JSON would have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pydantic_core

from rlt_jobs.builds.sources.lines import MAX_LINE
from rlt_jobs.builds.sources.rows import Position, Row, SourceError, listed, repeated

__all__ = ["BATCH_ROWS", "kept_columns", "pieces", "rows_of", "text_bytes"]

BATCH_ROWS = 256  # rows in memory at once
PIECE_BYTES = 32 * 2**20  # of their texts


def kept_columns(schema: pa.Schema) -> list[str]:
    """All but those that hold bytes, such as images: JSON has none, and no build reads them.

    Raises:
        SourceError: a column that stands there twice.
    """
    if twice := repeated(schema.names):
        raise SourceError("duplicate_columns", f"columns that are there twice: {listed(twice)}")
    return [field.name for field in schema if not _holds_bytes(field.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def text_bytes(values: Any) -> int:
    """What the texts of a batch or an array take when each row has its own; of other values, what they take now."""
    if isinstance(values, pa.RecordBatch):
        return sum(map(text_bytes, values.columns))
    kind = values.type
    if pa.types.is_dictionary(kind):
        lengths = pc.take(pc.binary_length(values.dictionary), values.indices)
        return pc.sum(lengths.cast(pa.int64())).as_py() or 0
    if pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = values.flatten()
        return sum(map(text_bytes, inner)) if isinstance(inner, list) else text_bytes(inner)
    return int(values.nbytes)


def pieces(batch: pa.RecordBatch, before: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The batch in parts whose texts fit into memory side by side, each with the number of rows before it."""
    if batch.num_rows <= 1 or text_bytes(batch) <= PIECE_BYTES:
        yield batch, before
        return
    half = batch.num_rows // 2
    yield from pieces(batch.slice(0, half), before)
    yield from pieces(batch.slice(half), before + half)


def rows_of(batch: pa.RecordBatch, before: int) -> Iterator[Row]:
    """The rows of a batch that `before` rows come before. What JSON cannot hold becomes text, NaN becomes null."""
    if batch.num_rows == 1 and text_bytes(batch) > MAX_LINE:
        yield Row(before + 1, None, f"the row is longer than {MAX_LINE} bytes", Position(before + 1, 0))
        return
    odd = [field.name for field in batch.schema if not _is_plain(field.type)]
    try:
        for line, values in enumerate(_values(batch, odd), before + 1):
            yield Row(line, values, "", Position(line, 0))
    except (ValueError, OverflowError) as error:  # a text that is not UTF-8, a time that no calendar has
        if batch.num_rows == 1:
            line = before + 1
            yield Row(line, None, f"cannot be read: {error}", Position(line, 0))
            return
        for row in range(batch.num_rows):
            yield from rows_of(batch.slice(row, 1), before + row)


def _values(batch: pa.RecordBatch, odd: list[str]) -> list[dict[str, Any]]:
    """Raises `ValueError` and `OverflowError` for what Python has no value for."""
    rows = batch.to_pylist()
    for values in rows:
        values.update((name, _jsonable(values[name])) for name in odd)
    return rows


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _jsonable(value: Any) -> Any:
    return pydantic_core.from_json(pydantic_core.to_json(value, inf_nan_mode="null", fallback=str))
