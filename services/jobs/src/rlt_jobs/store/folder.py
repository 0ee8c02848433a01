"""A store in a folder that all processes share: each file is written aside, synced and renamed into its place."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from rlt_jobs.store.backend import Entry

__all__ = ["Folder"]

PART = ".part"


class Folder:
    """Args:
    root: made when something is written, if it does not exist.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self.url = str(self._root)

    def local(self, uri: str) -> Path:
        path = (self._root / uri).resolve()
        if not path.is_relative_to(self._root):
            raise FileNotFoundError(errno.ENOENT, "a link that leads out of the store", uri)
        return path

    @contextmanager
    def writing(self, uri: str) -> Iterator[IO[bytes]]:
        path = self.local(uri)
        _make(path.parent)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                raise FileExistsError(uri)
            part.rename(path)
        finally:
            with suppress(OSError):  # gone after the rename, or together with the disk
                part.unlink()
        _sync_folders(path.parent, self._root)

    def reading(self, uri: str) -> IO[bytes]:
        return self.local(uri).open("rb", buffering=0)

    def size(self, uri: str) -> int:
        return self.local(uri).stat().st_size

    def remove(self, uri: str) -> None:
        self.local(uri).unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[Entry]:
        folders = [self.local(prefix)]
        while folders:
            with suppress(FileNotFoundError):  # removed meanwhile
                for entry in os.scandir(folders.pop()):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        yield self._entry(entry)

    def _entry(self, entry: os.DirEntry[str]) -> Entry:
        found = entry.stat(follow_symlinks=False)
        changed_at = datetime.fromtimestamp(found.st_mtime, UTC)
        return Entry(os.path.relpath(entry.path, self._root), found.st_size, changed_at)

    def unfinished(self) -> Iterator[Entry]:
        """None: what a killed writer leaves is a file like others, which `list` gives."""
        return iter(())

    def discard(self, entry: Entry) -> None:
        self.remove(entry.uri)

    def there(self) -> bool:
        return self._root.is_dir()

    def room(self) -> tuple[int, int] | None:
        _make(self._root)
        usage = shutil.disk_usage(self._root)
        return usage.free, usage.total

    def probe(self) -> None:
        """Writes and removes a byte: a full disk, one that became read-only and a lost mount all show in that."""
        _make(self._root)
        path = self._root / f".probe-{uuid.uuid4().hex}{PART}"
        try:
            path.write_bytes(b"x")
        finally:
            with suppress(OSError):
                path.unlink()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a plain file in a folder's place is not a name that is taken
        raise NotADirectoryError(error.errno, "not a folder", str(folder)) from error


def _sync_folders(folder: Path, root: Path) -> None:
    """A new name is on disk once its folder is, and a new folder once its parent is."""
    while folder.is_relative_to(root):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        folder = folder.parent
