"""Files of the store: written once, whole or not at all, under names that are never used again.

The store is a folder that all processes share, or a bucket of S3; everything names files by URIs relative to it.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import posixpath
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any, ClassVar

from rlt_client.errors import RLTError, Unavailable
from rlt_jobs.store.backend import Backend, Entry
from rlt_jobs.store.bucket import Bucket
from rlt_jobs.store.folder import Folder

__all__ = ["Damaged", "HashingWriter", "Pending", "Store", "StoreFull", "StoreUnavailable", "Stored"]

CHUNK = 2**20
LOCAL_BUFFER = 2**20
REMOTE_BUFFER = 8 * 2**20  # of an object: a request costs milliseconds
FULL = {errno.ENOSPC, errno.EDQUOT}
RETRY_SECONDS = 10  # told to clients: disks are not mended sooner


class Damaged(RLTError):
    """A file is missing, or is not what was written."""


class StoreUnavailable(Unavailable):
    """The store refuses, or is not reached, for now. Nothing was written, and nothing is known to be lost."""

    default_type = "store_unavailable"
    title = "The store cannot be used now"


class StoreFull(StoreUnavailable):
    status: ClassVar[int] = 507
    default_type = "store_full"
    title = "The store is full"


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
        view = memoryview(data).cast("B")
        try:
            self._file.write(view)
        except OSError as error:
            raise _refusal("writing", error) from error
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
    """Not asynchronous: callers use threads. Opens nothing before its first use, so that processes may fork till then.

    Every method raises `StoreUnavailable` where the place itself cannot be used now, and `Damaged` for a name that
    leads out of it.

    Args:
        url: a folder, made if it does not exist, or `s3://bucket/prefix`.
        endpoint_url: of an S3 other than Amazon's; None takes AWS_ENDPOINT_URL.
    """

    def __init__(self, url: str | Path, *, endpoint_url: str | None = None) -> None:
        self._backend: Backend = _backend(str(url), endpoint_url)
        self.url = self._backend.url

    @contextmanager
    def create(self, uri: str) -> Iterator[Pending]:
        """Write a new file. It appears, for good, when the block ends; on an error nothing remains.

        Raises:
            FileExistsError: the name is taken: names are used once.
        """
        context = self._backend.writing(_inside(uri))
        with self._to_write(uri):
            file = context.__enter__()
        try:
            yield Pending(HashingWriter(file), uri)
        except BaseException as error:
            with suppress(OSError):  # the block's own error is the one to tell
                context.__exit__(type(error), error, error.__traceback__)
            raise
        with self._to_write(uri):
            context.__exit__(None, None, None)

    @asynccontextmanager
    async def writing(self, uri: str) -> AsyncIterator[Pending]:
        """`create` for an event loop: what waits for the disk or the network waits in a thread."""
        context = self.create(uri)
        pending = await asyncio.to_thread(context.__enter__)
        try:
            yield pending
        except BaseException as error:
            await asyncio.shield(asyncio.to_thread(_leave, context, error))
            raise
        await asyncio.to_thread(context.__exit__, None, None, None)

    def open(self, uri: str) -> BufferedReader:
        """Read a file; it can seek. Raises `Damaged` where it is missing."""
        with self._to_read(uri):
            raw = self._backend.reading(_inside(uri))
        local = self._backend.local(_inside(uri)) is not None
        return BufferedReader(_Reading(self, uri, raw), LOCAL_BUFFER if local else REMOTE_BUFFER)

    def size(self, uri: str) -> int:
        """Bytes. Raises `Damaged` where the file is missing."""
        with self._to_read(uri):
            return self._backend.size(_inside(uri))

    def exists(self, uri: str) -> bool:
        try:
            self.size(uri)
        except Damaged:
            return False
        return True

    def remove(self, uri: str) -> None:
        """A file that is not there is no error."""
        with self._to_write(uri):
            self._backend.remove(_inside(uri))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All files below a folder in no order, also what killed writers left there. Memory holds one folder."""
        with self._to_write(prefix):
            yield from self._backend.list(_inside(prefix) if prefix else "")

    def unfinished(self) -> Iterator[Entry]:
        """What killed writers left that `list` does not show."""
        with self._to_write("unfinished uploads"):
            yield from self._backend.unfinished()

    def discard(self, entry: Entry) -> None:
        """Remove one of `unfinished`."""
        with self._to_write(entry.uri):
            self._backend.discard(entry)

    def verify(self, stored: Stored) -> None:
        """Read a file whole. Raises `Damaged` where it is missing or differs in size or SHA-256."""
        with self.open(stored.uri) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if (size, found) != (stored.bytes, stored.sha256):
            raise Damaged(f"{stored.uri}: not what was written ({size} bytes of {stored.bytes})")

    def probe(self) -> None:
        """Whether files could be written now: for readiness."""
        with self._to_write(self.url):
            self._backend.probe()

    def room(self) -> tuple[int | None, int | None]:
        """Bytes free and in all of the disk under a folder; None of S3, which has no end."""
        with self._to_write(self.url):
            return self._backend.room() or (None, None)

    def local(self, uri: str) -> Path | None:
        """The file's own path, where the store is a folder."""
        with self._to_read(uri):
            return self._backend.local(_inside(uri))

    @contextmanager
    def _to_write(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise FileExistsError(f"{what} was written before: names are used once") from error
        except OSError as error:
            raise _refusal(what, error) from error

    @contextmanager
    def _to_read(self, uri: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError) as error:
            with self._to_write(uri):
                there = self._backend.there()
            if not there:
                raise _refusal(self.url, error) from error
            raise Damaged(f"{uri}: {error.strerror or 'no such file'}") from error
        except OSError as error:
            raise _refusal(uri, error) from error


class _Reading(RawIOBase):
    """A file of a backend whose errors are the store's."""

    def __init__(self, store: Store, uri: str, raw: Any) -> None:
        self._store = store
        self._uri = uri
        self._raw = raw

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def readinto(self, buffer: Any) -> int:
        with self._store._to_read(self._uri):
            return int(self._raw.readinto(buffer))

    def close(self) -> None:
        self._raw.close()
        super().close()


def _backend(url: str, endpoint_url: str | None) -> Backend:
    if url.startswith("s3://"):
        return Bucket(url, endpoint_url=endpoint_url)
    return Folder(Path(url))


def _inside(uri: str) -> str:
    """Raises `Damaged` for a name that leads out of the store."""
    name = posixpath.normpath(uri)
    if name.startswith(("/", "..")) or name == "." or "\0" in name:
        raise Damaged(f"{uri} is not a name inside the store")
    return name


def _refusal(what: str, error: OSError) -> StoreUnavailable:
    reason = StoreFull if error.errno in FULL else StoreUnavailable
    return reason(f"{what}: {error.strerror or error}", retry_after=RETRY_SECONDS)


def _leave(context: AbstractContextManager[Any], error: BaseException) -> None:
    with suppress(BaseException):  # the block's own error is raised by the caller
        context.__exit__(type(error), error, error.__traceback__)
