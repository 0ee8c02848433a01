"""Rows of a version, each with its trace: the manifest and the files that it points into are read side by side.

Both are sorted by problem, so a file is read from its beginning to its end, a row group at a time.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import accumulate, groupby
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlt_jobs.store.files import Damaged, Store, Stored
from rlt_jobs.store.traces import COMPACT, MANIFEST

__all__ = ["BATCH", "joined", "members_of"]

BATCH: Final = 1_024
"""Members joined at once: as many as a file of ours has in a row group."""

_KEY: Final = ("build_id", "problem", "sample_idx")
_POINTER: Final = ("file_id", "row")


OPEN: Final = 4
"""Files read side by side: samples that were asked for again lie in a file of their own."""


def opened(store: Store, uri: str) -> pq.ParquetFile:
    """A Parquet file whose pages are held against their checksums. Raises `Damaged` for what is none."""
    with _reading(uri):
        return pq.ParquetFile(store.open(uri), page_checksum_verification=True, pre_buffer=True)


def joined(
    store: Store, manifest: Stored, files: Mapping[int, Stored], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The version's rows in the manifest's order, by problem and rank. Memory holds a row group of each of
    the few files read side by side, and one batch.

    Args:
        files: by id, those that the manifest points into.
        columns: of manifest and traces; of those in both the manifest's; null where the files are older than a column.

    Raises:
        Damaged: a file is missing, is no Parquet file, or holds another sample than the manifest names.
    """
    reader = _Reader(store, files, [name for name in COMPACT.names if name in columns and name not in MANIFEST.names])
    wanted = [name for name in MANIFEST.names if name in (*_KEY, *_POINTER, *columns)]
    try:
        for members in members_of(store, manifest, wanted):
            yield from _side_by_side(members, reader.take(members), columns)
    finally:
        reader.close()


def members_of(store: Store, manifest: Stored, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The manifest's rows; without the columns that are younger than it. Raises `Damaged`."""
    with closing(opened(store, manifest.uri)) as file, _reading(manifest.uri):
        yield from file.iter_batches(BATCH, columns=[name for name in columns if name in file.schema_arrow.names])


def _side_by_side(members: pa.RecordBatch, traces: pa.Table, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for name in _KEY:
        if not traces[name].combine_chunks().equals(members[name]):
            raise Damaged(f"a file's row is not the sample that the manifest names: {name} differs")
    rows = pa.Table.from_arrays(
        [_column(name, members, traces) for name in columns], schema=pa.schema([_field(name) for name in columns])
    )
    yield from rows.combine_chunks().to_batches()


def _field(name: str) -> Any:
    return MANIFEST.field(name) if name in MANIFEST.names else COMPACT.field(name)


def _column(name: str, members: pa.RecordBatch, traces: pa.Table) -> Any:
    for side in (members, traces):
        if name in side.schema.names:
            return side[name]
    return pa.nulls(members.num_rows, _field(name).type)


class _Reader:
    """Rows of trace files; the files read last stay open."""

    def __init__(self, store: Store, files: Mapping[int, Stored], columns: Sequence[str]) -> None:
        self._store = store
        self._stored = files
        self._columns = [*_KEY, *columns]
        self._files: dict[int, _File] = {}  # the one read last stands last

    def take(self, members: pa.RecordBatch) -> pa.Table:
        """The trace of each member, in their order."""
        file_ids: list[Any] = members["file_id"].to_pylist()
        rows: list[Any] = members["row"].to_pylist()
        order = sorted(range(len(rows)), key=lambda index: (file_ids[index], rows[index]))
        parts: list[pa.Table] = []
        for file_id, those in groupby(order, key=file_ids.__getitem__):
            parts.extend(self._open(file_id).read([rows[index] for index in those]))
        found = pa.concat_tables(parts)
        if order == list(range(len(order))):
            return found
        return found.combine_chunks().take(pc.sort_indices(pa.array(order)))

    def _open(self, file_id: int) -> _File:
        file = self._files.pop(file_id, None)
        if file is None:
            if file_id not in self._stored:
                raise Damaged(f"the manifest points into file {file_id}, which is none of the version's")
            if len(self._files) == OPEN:
                self._files.pop(next(iter(self._files))).close()
            file = _File(self._store, self._stored[file_id].uri, self._columns)
        self._files[file_id] = file
        return file

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


class _File:
    """Keeps the row group read last."""

    def __init__(self, store: Store, uri: str, columns: list[str]) -> None:
        self._uri = uri
        self._columns = columns
        self._file = opened(store, uri)
        counts = [self._file.metadata.row_group(index).num_rows for index in range(self._file.num_row_groups)]
        self._starts = [0, *accumulate(counts)][:-1] or [0]
        self._group: tuple[int, pa.Table] | None = None

    def read(self, rows: Sequence[int]) -> Iterator[pa.Table]:
        """The rows, which ascend."""
        for group, those in groupby(rows, key=lambda row: bisect(self._starts, row) - 1):
            yield _rows(self._load(group), [row - self._starts[group] for row in those])

    def _load(self, group: int) -> pa.Table:
        if self._group is None or self._group[0] != group:
            self._group = None  # before the next is read: memory holds one
            with _reading(self._uri):
                self._group = (group, self._file.read_row_group(group, columns=self._columns))
        return self._group[1]

    def close(self) -> None:
        self._file.close(force=True)


def _rows(table: pa.Table, wanted: list[int]) -> pa.Table:
    """Raises `Damaged` for a row that is not there."""
    if wanted[-1] >= table.num_rows or wanted[0] < 0:
        raise Damaged(f"a file ends before row {wanted[-1]} of a row group")
    if wanted == list(range(wanted[0], wanted[0] + len(wanted))):
        return table.slice(wanted[0], len(wanted))
    return table.take(pa.array(wanted))


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, IndexError, pa.ArrowInvalid) as error:
        raise Damaged(f"{uri}: {error}") from error
