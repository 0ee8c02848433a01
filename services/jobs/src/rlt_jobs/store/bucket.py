"""A store in a bucket of S3, or of what speaks its protocol: one PUT, or a multipart upload completed at the end.

The endpoint, region and credentials come from the usual AWS variables and files. s3fs works in a thread with a loop of
its own, which a fork does not copy; so the connection is made at first use, in each process anew.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, cast

from rlt_jobs.store.backend import Entry

__all__ = ["Bucket"]

PART = 16 * 2**20  # bytes: S3 takes 10,000 parts, so a file has 160 GiB at most
CONNECT_SECONDS = 5  # what is not reached by then is away
READ_SECONDS = 30  # without a byte; a part of 16 MiB takes seconds
ATTEMPTS = 4  # botocore's, with back-off: throttling and 5xx of a moment; what lasts is the caller's to wait for
S3FS_ATTEMPTS = 2  # s3fs repeats around botocore what breaks in mid-reply


class Bucket:
    """Args:
    url: `s3://bucket/prefix`.
    endpoint_url: of a server other than Amazon's; None takes AWS_ENDPOINT_URL.
    """

    def __init__(self, url: str, *, endpoint_url: str | None = None) -> None:
        self._root = url.removeprefix("s3://").rstrip("/")
        self.url = f"s3://{self._root}"
        self._bucket, _, self._prefix = self._root.partition("/")
        if not self._bucket:
            raise ValueError(f"{url} names no bucket")
        self._endpoint_url = endpoint_url
        self._made: tuple[int, Any] | None = None

    @property
    def _files(self) -> Any:
        """The file system of this process."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = (os.getpid(), _connect(self._endpoint_url))
        return self._made[1]

    def _path(self, uri: str) -> str:
        return f"{self._root}/{uri}" if uri else self._root

    def local(self, _uri: str) -> Path | None:
        return None

    @contextmanager
    def writing(self, uri: str) -> Iterator[IO[bytes]]:
        with _os_errors():
            if self._files.exists(self._path(uri)):
                raise FileExistsError(uri)
            file = self._files.open(self._path(uri), "xb", block_size=PART)
        try:
            yield cast(IO[bytes], _Translated(file))
        except BaseException:
            _give_up(file)
            raise
        try:
            with _os_errors():
                _complete(file)
        except BaseException:
            _give_up(file)
            raise

    def reading(self, uri: str) -> IO[bytes]:
        return cast(IO[bytes], _Object(self._files, self._path(uri), self.size(uri)))

    def size(self, uri: str) -> int:
        with _os_errors():
            return int(self._files.info(self._path(uri))["size"])

    def remove(self, uri: str) -> None:
        with _os_errors():
            try:
                self._files.rm_file(self._path(uri))
            except FileNotFoundError:
                if not self.there():
                    raise

    def list(self, prefix: str) -> Iterator[Entry]:
        folders = [self._path(prefix)]
        while folders:
            for found in self._listed(folders.pop()):
                if found["type"] == "directory":
                    folders.append(found["name"])
                elif not found["name"].endswith("/"):  # what consoles make in place of a folder
                    uri = found["name"].removeprefix(f"{self._root}/")
                    yield Entry(uri, found["size"], found["LastModified"])

    def _listed(self, folder: str) -> Any:
        with _os_errors():
            try:
                return self._files.ls(folder, detail=True)
            except FileNotFoundError:  # a bucket knows no empty folder
                return []

    def unfinished(self) -> Iterator[Entry]:
        """Multipart uploads that nobody completed, by whole key: they cost as files do and no listing shows them."""
        with _os_errors():
            for upload in self._files.list_multipart_uploads(self._bucket):
                if upload["Key"].startswith(self._prefix and f"{self._prefix}/"):
                    initiated: datetime = upload["Initiated"]
                    yield Entry(upload["Key"], 0, initiated, upload["UploadId"])

    def discard(self, entry: Entry) -> None:
        with _os_errors():
            try:
                self._files.abort_mpu(self._bucket, entry.uri, entry.upload_id)
            except FileNotFoundError:  # ended meanwhile
                return

    def there(self) -> bool:
        with _os_errors():
            try:
                self._files.call_s3("head_bucket", Bucket=self._bucket)
            except FileNotFoundError:
                return False
        return True

    def room(self) -> None:
        return None

    def probe(self) -> None:
        """Only whether the bucket answers: a write a look would cost money."""
        if not self.there():
            raise FileNotFoundError(errno.ENOENT, "there is no such bucket", self._bucket)


class _Translated(RawIOBase):
    """A file of s3fs whose errors are OSErrors."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with _os_errors():
            return int(self._file.write(data))


class _Object(RawIOBase):
    """An object, read by ranges."""

    def __init__(self, files: Any, path: str, size: int) -> None:
        self._files = files
        self._path = path
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + view.nbytes, self._size)
        if end <= self._at:
            return 0
        with _os_errors():
            part = self._files.cat_file(self._path, start=self._at, end=end)
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


def _connect(endpoint_url: str | None) -> Any:
    import s3fs  # optional, and slow to import

    files = s3fs.S3FileSystem(
        endpoint_url=endpoint_url,
        use_listings_cache=False,  # other processes write and remove
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"mode": "standard", "max_attempts": ATTEMPTS},
        },
    )
    files.retries = S3FS_ATTEMPTS
    return files


def _complete(file: Any) -> None:
    try:
        file.close()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        file.mode = "wb"  # a server that refuses If-None-Match: that the name is free was seen before
        file.commit()


def _give_up(file: Any) -> None:
    """Nothing remains; where even that cannot be said to the server, the sweep says it later."""
    file.closed = True  # or the collector would complete it
    try:
        with _os_errors():
            file.discard()
    except OSError:
        pass


@contextmanager
def _os_errors() -> Iterator[None]:
    from aiohttp import ClientError as BrokenOff
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (BotoCoreError, BrokenOff) as error:  # no route, no credentials, broken off: s3fs translates replies only
        raise OSError(errno.EIO, str(error)) from error
