"""A large file over HTTP that goes on where it broke off, after a broken connection and after a killed process.

What has arrived lies in a part file beside the target, whose name says what it is a part of. The target appears once
all of it is there and matches the service's checksum.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import httpx

from rlt_client._http import HTTP
from rlt_client.errors import DeadlineExceeded, InvalidRequest, ProtocolError, TransportError, Unavailable

__all__ = ["download"]

CHUNK: Final = 2**20  # bytes worth a thread's while
PAUSE: Final = 0.5  # between a connection that broke and the next: a service that restarts takes longer
NO_SUCH_RANGE: Final = "range_not_satisfiable"
BEING_WRITTEN: Final = "export_being_written"
_SHA256: Final = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")


async def download(http: HTTP, path: str, params: Mapping[str, Any], to: Path) -> int:
    """Write what `path` answers into the file `to`, which appears whole or not at all. Returns its bytes.

    It goes on as long as bytes come, and gives up after the client's patience without any. What has arrived is kept
    for the next call.

    Raises:
        OSError: the file cannot be written, or somebody else is just writing it.
        ProtocolError: what came is not what the service says it is.
    """
    source = hashlib.sha256(repr((http.base_url, path, sorted(params.items()))).encode()).hexdigest()[:16]
    part = to.with_name(f".{to.name}.{source}.part")
    with _held(part) as file:
        size = await _Download(http, path, params, file).run()
        await asyncio.to_thread(os.fsync, file.fileno())
        part.replace(to)
    return size


class _Download:
    def __init__(self, http: HTTP, path: str, params: Mapping[str, Any], file: IO[bytes]) -> None:
        self._http = http
        self._path = path
        self._params = params
        self._file = file
        self._etag: str | None = None
        self._digest: bytes | None = None
        self._since = time.monotonic()
        """When bytes came last."""

    async def run(self) -> int:
        """Returns the bytes of the whole."""
        carried = self._size() > 0
        await self._fetch()
        if carried and not await self._matches():  # the part of an earlier call was none of this
            self._start_over()
            await self._fetch()
        if not await self._matches():
            self._start_over()
            raise ProtocolError(f"{self._path}: what arrived does not match its checksum")
        return self._size()

    def _size(self) -> int:
        return self._file.seek(0, os.SEEK_END)

    def _start_over(self) -> None:
        self._file.truncate(0)
        self._etag = self._digest = None

    async def _fetch(self) -> None:
        patience = self._http.deadline if self._http.patience is None else self._http.patience
        while True:
            try:
                return await self._attempt()
            except DeadlineExceeded:
                raise
            except Unavailable as error:
                if error.type != BEING_WRITTEN:  # that lives and is at work
                    raise
            except TransportError:
                if time.monotonic() + PAUSE >= self._since + patience:
                    raise
            await asyncio.sleep(PAUSE)

    async def _attempt(self) -> None:
        """Ask for what is missing and take what comes."""
        have = self._size()
        headers = {"accept-encoding": "identity"}  # of something packed a range would mean nothing
        if have:
            headers["range"] = f"bytes={have}-"
            if self._etag is not None:
                headers["if-range"] = self._etag
        try:
            async with self._http.stream("GET", self._path, params=self._params, headers=headers, retry=True) as reply:
                await self._take(reply, have)
        except InvalidRequest as error:
            if error.type != NO_SUCH_RANGE:  # else all is there, or more: the checksum tells
                raise

    async def _take(self, reply: httpx.Response, have: int) -> None:
        if reply.status_code != httpx.codes.PARTIAL_CONTENT:
            self._start_over()
        elif not reply.headers.get("content-range", "").startswith(f"bytes {have}-"):
            raise ProtocolError(f"{self._path}: asked for the bytes from {have} on and got others")
        self._note(reply)
        held = bytearray()
        try:
            async for piece in reply.aiter_raw():
                self._since = time.monotonic()
                held += piece
                if len(held) >= CHUNK:
                    await asyncio.to_thread(self._file.write, bytes(held))
                    held.clear()
        finally:
            self._file.write(held)  # what came before a break counts

    def _note(self, reply: httpx.Response) -> None:
        self._etag = reply.headers.get("etag")
        found = _SHA256.search(reply.headers.get("repr-digest", ""))
        self._digest = base64.b64decode(found[1]) if found else None

    async def _matches(self) -> bool:
        """Whether the file is what the service says, if it says anything: it may not keep what it sent."""
        if self._digest is None:
            async with self._http.stream("HEAD", self._path, params=self._params, retry=True) as reply:
                self._note(reply)
        return self._digest is None or await asyncio.to_thread(self._hash) == self._digest

    def _hash(self) -> bytes:
        self._file.flush()
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").digest()  # type: ignore[arg-type]  # wants a file's own class


@contextmanager
def _held(part: Path) -> Iterator[IO[bytes]]:
    """The part file, ours alone; what has arrived stays in it."""
    file = _locked(part)
    try:
        with file:
            yield file
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()


def _locked(part: Path) -> IO[bytes]:
    """Raises `BlockingIOError` while somebody else writes it."""
    while True:
        file = part.open("a+b")
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        except FileNotFoundError:  # it took its name meanwhile
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: IO[bytes]) -> None:
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "somebody else is writing this", str(file.name)) from error
