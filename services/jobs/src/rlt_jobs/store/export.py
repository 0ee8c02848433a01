"""A version as a stream: JSON lines, Parquet, or a Hugging Face folder as a zip. Memory holds a row group or two.

The same version gives the same bytes whenever it is asked for, so that a broken download can go on. Not asynchronous:
the server takes one piece after the other in a thread.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from itertools import chain
from typing import Any, Final

import orjson
import pyarrow as pa

from rlt_client.errors import InternalError
from rlt_client.schemas.builds import ExportFormat
from rlt_jobs.store.card import Facts, card
from rlt_jobs.store.files import Damaged, Store, Stored
from rlt_jobs.store.joined import joined
from rlt_jobs.store.shapes import Shape
from rlt_jobs.store.traces import open_writer

__all__ = ["MEDIA_TYPES", "Export"]

PIECE: Final = 2**20
"""Bytes handed on at once, about."""
GROUP: Final = 32 * 2**20
"""Bytes of columns in a row group: what readers hold, and compress and skip by."""
MEMBER: Final = 512 * 2**20
"""Bytes of a Parquet file in a folder, as the hub wants them: few, yet read in parallel."""
MEDIA_TYPES = {
    ExportFormat.jsonl: ("application/x-ndjson", "jsonl"),
    ExportFormat.parquet: ("application/vnd.apache.parquet", "parquet"),
    ExportFormat.hf: ("application/zip", "zip"),
}
_NO_TIME: Final = (1980, 1, 1, 0, 0, 0)  # zip's own zero: the hour of packing must not change the bytes


class _Pipe(RawIOBase):
    """A file that cannot seek; what is written is taken out at the other end."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._held += view
        self._position += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._position

    @property
    def waiting(self) -> int:
        return len(self._held)

    def take(self) -> Iterator[bytes]:
        taken, self._held = memoryview(self._held), bytearray()
        for start in range(0, len(taken), PIECE):
            yield bytes(taken[start : start + PIECE])


@dataclass(frozen=True)
class Export:
    """Args:
    files: by id, those that the version reads.
    shape: what a row looks like.
    facts: what the card of a Hugging Face folder tells.
    """

    store: Store
    manifest: Stored
    files: dict[int, Stored]
    shape: Shape
    facts: Facts

    def check(self) -> None:
        """Before the first byte is sent: is everything there? Raises `InternalError`, since it should be."""
        try:
            self.store.verify(self.manifest)
            for file in self.files.values():
                size = self.store.size(file.uri)
                if size != file.bytes:
                    raise Damaged(f"{file.uri}: {size} bytes instead of {file.bytes}")
        except Damaged as error:
            raise InternalError(f"the store is damaged: {error}", type="store_damaged") from error

    def stream(self, format: ExportFormat) -> Iterator[bytes]:
        """The bytes. An error breaks the stream: half an export must not look whole."""
        steps = {ExportFormat.jsonl: self._jsonl, ExportFormat.parquet: self._parquet, ExportFormat.hf: self._folder}
        pipe = _Pipe()
        for _ in steps[format](pipe):
            yield from pipe.take()
        yield from pipe.take()

    def _jsonl(self, pipe: _Pipe) -> Iterator[None]:
        for rows in self._rows():
            names = rows.schema.names
            for values in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                line = dict(zip(names, values, strict=True))
                pipe.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
                if pipe.waiting >= PIECE:
                    yield

    def _parquet(self, pipe: _Pipe) -> Iterator[None]:
        with open_writer(pipe, self.shape.schema) as writer:
            for group in self._groups():
                writer.write_table(group)
                yield

    def _folder(self, pipe: _Pipe) -> Iterator[None]:
        groups = self._groups()
        with zipfile.ZipFile(pipe, "w") as archive:
            about = card(self.facts, self.store, self.manifest, self.files.values())
            archive.writestr(zipfile.ZipInfo("README.md", _NO_TIME), about)
            for number, first in enumerate(groups):
                info = zipfile.ZipInfo(f"data/train-{number:05d}.parquet", _NO_TIME)
                began = pipe.tell()
                with archive.open(info, "w", force_zip64=True) as member, open_writer(member, first.schema) as writer:
                    for group in chain([first], groups):
                        writer.write_table(group)
                        yield
                        if pipe.tell() - began >= MEMBER:
                            break

    def _groups(self) -> Iterator[pa.Table]:
        """Row groups of the files that are made."""
        held: list[pa.RecordBatch] = []
        for rows in self._rows():
            held.append(rows)
            if sum(each.nbytes for each in held) >= GROUP:
                yield pa.Table.from_batches(held)
                held.clear()
        if held:
            yield pa.Table.from_batches(held)

    def _rows(self) -> Iterator[pa.RecordBatch]:
        for rows in joined(self.store, self.manifest, self.files, self.shape.columns):
            yield self.shape.of(rows)
