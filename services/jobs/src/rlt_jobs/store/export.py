"""A version as a stream: JSON lines, Parquet, or a Hugging Face folder as a zip. Memory holds one row group.

Not asynchronous: the server iterates it in a thread.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import RawIOBase
from itertools import groupby
from typing import Any

import pyarrow.parquet as pq

from rlt_client.errors import InternalError
from rlt_client.schemas.builds import ExportFormat
from rlt_jobs.store.files import Damaged, Store, Stored
from rlt_jobs.store.shapes import Shape
from rlt_jobs.store.traces import Traces, open_writer, table

__all__ = ["MEDIA_TYPES", "Export"]

BATCH = 1_024  # rows joined at once
MEDIA_TYPES = {
    ExportFormat.jsonl: ("application/x-ndjson", "jsonl"),
    ExportFormat.parquet: ("application/vnd.apache.parquet", "parquet"),
    ExportFormat.hf: ("application/zip", "zip"),
}


class _Pipe(RawIOBase):
    """A file that cannot seek; what is written is taken out at the other end."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken


@dataclass(frozen=True)
class Export:
    """Args:
    files: URI by id of the files that the version reads.
    shape: what a row looks like.
    card: README.md of a Hugging Face folder.
    """

    store: Store
    manifest: Stored
    files: dict[int, Stored]
    shape: Shape
    card: str

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
            if part := pipe.take():
                yield part
        if part := pipe.take():
            yield part

    def _jsonl(self, pipe: _Pipe) -> Iterator[None]:
        for _, rows in self._batches():
            pipe.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            yield

    def _parquet(self, pipe: _Pipe) -> Iterator[None]:
        with open_writer(pipe, self.shape.schema) as writer:
            for _, rows in self._batches():
                writer.write_table(table(rows, self.shape.schema))
                yield

    def _folder(self, pipe: _Pipe) -> Iterator[None]:
        with zipfile.ZipFile(pipe, "w") as archive:
            archive.writestr("README.md", self.card)
            by_file = groupby(self._batches(), key=lambda batch: batch[0])
            for number, (_, batches) in enumerate(by_file):
                with archive.open(f"data/train-{number:05d}.parquet", "w", force_zip64=True) as member:
                    yield from self._member(member, (rows for _, rows in batches))

    def _member(self, member: Any, batches: Iterator[Sequence[dict[str, Any]]]) -> Iterator[None]:
        with open_writer(member, self.shape.schema) as writer:
            for rows in batches:
                writer.write_table(table(rows, self.shape.schema))
                yield

    def _batches(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Rows in the manifest's order, by problem and rank, with the file that they come from."""
        traces = Traces(self.store)
        with self.store.open(self.manifest.uri) as file, closing(pq.ParquetFile(file)) as manifest:
            for part in manifest.iter_batches(BATCH):
                for file_id, members in groupby(part.to_pylist(), key=lambda row: row["file_id"]):
                    yield file_id, list(self._joined(traces, self.files[file_id].uri, list(members)))

    def _joined(self, traces: Traces, uri: str, members: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        texts = traces.read((uri, member["row"]) for member in members)
        for member in members:
            trace = texts[uri, member["row"]]
            if (trace["problem"], trace["sample_idx"]) != (member["problem"], member["sample_idx"]):
                raise Damaged(f"{uri}, row {member['row']} is not the sample that the manifest names")
            yield self.shape.of({**trace, **member})
