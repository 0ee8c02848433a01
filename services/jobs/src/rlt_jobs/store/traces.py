"""Parquet files of traces: what a shard seals, and what a version is compacted into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["COMPACT", "MANIFEST", "TRACE", "open_writer", "read_rows", "table"]

_KEY: list[pa.Field[Any]] = [
    pa.field("build_id", pa.int64(), nullable=False),
    pa.field("problem", pa.int32(), nullable=False),
    pa.field("sample_idx", pa.int16(), nullable=False),
]
_TEXTS: list[pa.Field[Any]] = [
    pa.field("try", pa.int16(), nullable=False),
    pa.field("gen_status", pa.string(), nullable=False),
    pa.field("finish_reason", pa.string()),
    pa.field("policy_revision", pa.string()),
    pa.field("prompt_tokens", pa.int32(), nullable=False),
    pa.field("completion_tokens", pa.int32(), nullable=False),
    pa.field("request_key", pa.binary(), nullable=False),
    pa.field("explanation", pa.string()),
    pa.field("completion", pa.string()),
    pa.field("token_ids", pa.list_(pa.int32())),
    pa.field("logprobs", pa.list_(pa.float32())),
]
TRACE = pa.schema([*_KEY, pa.field("question_hash", pa.binary(), nullable=False), *_TEXTS])
"""One row a trace that has texts."""

_PROBLEM: list[pa.Field[Any]] = [
    pa.field("question", pa.string(), nullable=False),
    pa.field("answer", pa.string(), nullable=False),
    pa.field("system", pa.string()),
]
COMPACT = pa.schema([*_KEY, pa.field("question_hash", pa.binary(), nullable=False), *_TEXTS, *_PROBLEM])
"""A trace with its problem: a version reads nothing but its files."""

_REWARD: list[pa.Field[Any]] = [
    pa.field(name, pa.float64()) for name in ("reward", "ss_mean", "ss_min", "ss_sum", "kl_mean", "kl_max", "format")
]
MANIFEST = pa.schema(
    [
        *_KEY,
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("file_id", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        *_REWARD,
        pa.field("n_answer", pa.int32()),
        pa.field("n_think", pa.int32()),
        pa.field("flags", pa.list_(pa.string())),
    ]
)
"""One row a member of a version, by problem and rank: which trace, how it was scored, and where its texts lie."""


def table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


@contextmanager
def open_writer(file: IO[bytes] | Any, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """zstd, with statistics, so that readers skip what they do not want."""
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_index=True) as writer:
        yield writer


def read_rows(file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The given rows, in ascending order, one row group in memory at a time."""
    wanted = sorted(rows)
    start = at = 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        inside = []
        while at < len(wanted) and wanted[at] < end:
            inside.append(wanted[at] - start)
            at += 1
        if inside:
            yield from file.read_row_group(group).take(pa.array(inside)).to_pylist()
        start = end
