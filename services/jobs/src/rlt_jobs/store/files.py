"""Files of the store: written once, whole or not at all, under names that are never used again.

Today the store is a folder that all processes share; everything names files by URIs relative to it.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

from rlt_client.errors import RLTError

__all__ = ["Damaged", "HashingWriter", "Store", "Stored"]

CHUNK = 2**20


class Damaged(RLTError):
    """A file is missing, or is not what was written."""


@dataclass(frozen=True, slots=True)
class Stored:
    uri: str
    bytes: int
    sha256: str


class HashingWriter(RawIOBase):
    """Hashes and counts what goes through to `file`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        self._hash.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class Pending:
    """A file that is being written; `stored` once it is in its place."""

    def __init__(self, writer: HashingWriter, uri: str) -> None:
        self.writer = writer
        self.uri = uri

    @property
    def stored(self) -> Stored:
        return Stored(self.uri, self.writer.size, self.writer.sha256)


class Store:
    """Args:
    root: the folder. Made if it does not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def path(self, uri: str) -> Path:
        """Where a file of ours lies. Raises `Damaged` for a name that leads out of the store."""
        path = (self.root / uri).resolve()
        if not path.is_relative_to(self.root):
            raise Damaged(f"{uri} is not a name inside the store")
        return path

    @contextmanager
    def create(self, uri: str) -> Iterator[Pending]:
        """Write a new file. It appears, on disk for good, when the block ends; on an error nothing remains.

        Raises:
            FileExistsError: the name is taken: names are used once.
        """
        path = self.path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("xb") as file:
                pending = Pending(HashingWriter(file), uri)
                yield pending
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                raise FileExistsError(f"{uri} was written before: names are used once")
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
        _sync_folders(path.parent, self.root)

    def verify(self, stored: Stored) -> None:
        """Read a file whole. Raises `Damaged` where it is missing or differs in size or SHA-256."""
        path = self.path(stored.uri)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except OSError as error:
            raise Damaged(f"{stored.uri}: {error.strerror}") from error
        if (size, found) != (stored.bytes, stored.sha256):
            raise Damaged(f"{stored.uri}: not what was written ({size} bytes of {stored.bytes})")


def _sync_folders(folder: Path, root: Path) -> None:
    """A new name is on disk once its folder is, and a new folder once its parent is."""
    while folder.is_relative_to(root):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        folder = folder.parent
