"""Parquet files of traces: what a shard seals, and what a version is compacted into."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_jobs.store.files import Damaged, Store

__all__ = ["COMPACT", "MANIFEST", "TRACE", "Traces", "open_writer", "table"]

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
    """zstd, with statistics, so that readers skip what they do not want, and checksums, so that they notice damage."""
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_index=True, write_page_checksum=True) as writer:
        yield writer


class Traces:
    """Reads rows of trace files. Meant for rows asked for in about their order: one row group is kept in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._opened: tuple[str, pq.ParquetFile, list[int]] | None = None
        self._group: tuple[str, int, pa.Table] | None = None

    def read(self, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], dict[str, Any]]:
        """The rows by (URI of the file, row).

        Raises:
            Damaged: a file is missing or no Parquet file, or lacks the row.
        """
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for uri, rows in groupby(sorted(set(wanted)), key=lambda key: key[0]):
            file, starts = self._open(uri)
            for group, keys in groupby(rows, key=lambda key: bisect(starts, key[1]) - 1):
                keys_here = list(keys)
                taken = self._load(uri, file, group).take(pa.array([row - starts[group] for _, row in keys_here]))
                found.update(zip(keys_here, taken.to_pylist(), strict=True))
        return found

    def _open(self, uri: str) -> tuple[pq.ParquetFile, list[int]]:
        """A file and the first row of each of its groups."""
        if self._opened is None or self._opened[0] != uri:
            try:
                file = pq.ParquetFile(self._store.open(uri))
            except (OSError, pa.ArrowInvalid) as error:
                raise Damaged(f"{uri}: {error}") from error
            counts = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            self._opened = (uri, file, [0, *accumulate(counts)][:-1] or [0])
        return self._opened[1:]

    def _load(self, uri: str, file: pq.ParquetFile, group: int) -> pa.Table:
        if self._group is None or self._group[:2] != (uri, group):
            try:
                self._group = (uri, group, file.read_row_group(group))
            except (OSError, IndexError, pa.ArrowInvalid) as error:
                raise Damaged(f"{uri}, row group {group}: {error}") from error
        return self._group[2]
