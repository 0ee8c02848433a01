"""Exports on their way out: each is written into the store once and read from there by whoever asks again.

The first who asks gets the bytes while they are written. One who is slow, or leaves, does not hold the writing up for
those that wait for its end, and where it cannot be kept, as on a full disk, bytes still come: the same version gives
the same bytes, so a stream can go on anywhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Final, TypeVar
from uuid import uuid4

from rlt_client.errors import InternalError, RLTError, Unavailable
from rlt_client.schemas.builds import ExportFormat, ExportShape
from rlt_jobs.database import Database
from rlt_jobs.store import export_repository
from rlt_jobs.store.export import MEDIA_TYPES, PIECE, Export
from rlt_jobs.store.files import Damaged, Store, Stored

__all__ = ["Exports", "Key"]

T = TypeVar("T")

log = logging.getLogger(__name__)

THREADS: Final = 2
"""Of all exports together, which take turns piece by piece: an API on few cores must answer others meanwhile."""
AHEAD: Final = 8
"""Pieces that the writing may be ahead of the one who reads along: 8 MiB each download."""
AT_ONCE_SECONDS: Final = 0.5
"""An export written within this time is answered like a stored one, with its length and checksum."""
STALLED_SECONDS: Final = 30.0
"""One who reads along and takes nothing for so long no longer holds the writing up."""
WAIT_SECONDS: Final = 20.0
"""How long a second request waits for the end of the writing: below the minute after which proxies give up."""
RETRY_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Key:
    version_id: int
    format: ExportFormat
    shape: ExportShape

    def new_uri(self) -> str:
        return f"exports/{self.version_id}/{self.shape}-{uuid4().hex}.{MEDIA_TYPES[self.format][1]}"


class Exports:
    """All exports of one process. Two processes may write the same one; the first to end is kept."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="export")
        self._writing: dict[Key, _Writing] = {}

    async def close(self) -> None:
        """Breaks off what is being written; nothing of it remains."""
        tasks = [writing.task for writing in self._writing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)

    async def stored(self, key: Key) -> Stored | None:
        """What was written before and is still there."""
        async with self._database.begin() as session:
            found = await export_repository.kept(session, key.version_id, key.format, key.shape)
        if found is None or await self._there(found):
            return found
        log.warning("a kept export is gone or damaged; it is made anew", extra={"uri": found.uri})
        await self._forget(found)
        return None

    async def _there(self, stored: Stored) -> bool:
        try:
            return await asyncio.to_thread(self._store.size, stored.uri) == stored.bytes
        except Damaged:
            return False

    async def _forget(self, stored: Stored) -> None:
        async with self._database.begin() as session:
            await export_repository.forget(session, stored.uri)

    async def fetch(self, key: Key, export: Export, *, along: bool) -> Stored | AsyncIterator[bytes]:
        """The export in the store, or its bytes where they come otherwise.

        Args:
            along: whether bytes may come before the whole is there.

        Raises:
            InternalError: the version's own files are missing or damaged.
            Unavailable: it is still being written, or the store cannot be read.
        """
        writing = self._writing.get(key)
        if writing is not None:
            return await self._await(writing)
        writing = self._writing[key] = _Writing(self, key, export)
        writing.task.add_done_callback(lambda _: self._writing.pop(key))
        await writing.began.wait()
        await asyncio.wait({writing.task}, timeout=AT_ONCE_SECONDS)
        if along and not writing.task.done():
            return writing.follow()
        return await self._await(writing)

    async def _await(self, writing: _Writing) -> Stored | AsyncIterator[bytes]:
        writing.hurry()
        await asyncio.wait({writing.task}, timeout=WAIT_SECONDS)
        if not writing.task.done():
            raise Unavailable(
                f"this export is being written, {writing.bytes:,} bytes so far; ask again",
                type="export_being_written",
                retry_after=RETRY_SECONDS,
            )
        try:
            return writing.task.result() or self.made(writing.key, writing.export)
        except Damaged as error:
            raise InternalError(f"the store is damaged: {error}", type="store_damaged") from error

    def made(self, key: Key, export: Export, *, after: int = 0) -> AsyncIterator[bytes]:
        """The bytes from `after` on, made anew and kept nowhere."""
        return self.steps(_skipping(export.stream(key.format), after))

    async def read(self, stored: Stored, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes start … end−1 of a stored export. One read whole is held against its checksum before its last piece.

        Raises:
            Damaged: it is not what was written; whoever asks next gets it made anew.
        """
        try:
            async for piece in self.steps(_read(self._store, stored, start, stored.bytes if end is None else end)):
                yield piece
        except Damaged:
            await self._forget(stored)
            raise

    async def steps(self, pieces: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
        """Each piece made in one of the exports' threads, in turn with other downloads."""
        guarded = _Guarded(pieces)
        try:
            while (piece := await self.threaded(guarded.next)) is not None:
                yield piece
        finally:  # not awaited, for this may be a cancellation
            with suppress(RuntimeError):  # the process ends, and the threads have
                self._threads.submit(guarded.close)

    async def threaded(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def pieces(self, key: Key, export: Export, written: list[Stored]) -> Generator[bytes, None, None]:
        """The bytes, while they go into a file of the store, which is added to `written` at the end."""
        with self._store.create(key.new_uri()) as pending:
            for piece in export.stream(key.format):
                pending.writer.write(piece)
                yield piece
        written.append(pending.stored)

    async def keep(self, key: Key, stored: Stored) -> Stored:
        """Record what was written; another process may have been quicker, then its file it is."""
        try:
            async with self._database.begin() as session:
                kept = await export_repository.keep(session, key.version_id, key.format, key.shape, stored)
        except BaseException:
            await self.threaded(partial(self._store.remove, stored.uri))
            raise
        if kept != stored:
            await self.threaded(partial(self._store.remove, stored.uri))
        return kept


class _Writing:
    """An export on its way into the store, and to the one who asked first."""

    def __init__(self, exports: Exports, key: Key, export: Export) -> None:
        self._exports = exports
        self.key = key
        self.export = export
        self.bytes = 0
        self._whole = False
        self._written: list[Stored] = []
        self._follower = _Follower()
        self.began = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    def hurry(self) -> None:
        """Somebody waits for the end."""
        self._follower.hurried = True
        self._follower.moved.set()

    async def _run(self) -> Stored | None:
        """Where it is now; None if it could not be kept. Raises `Damaged`, and what `Export.check` raises."""
        try:
            await self._exports.threaded(self.export.check)
            self.began.set()
            async for piece in self._exports.steps(self._exports.pieces(self.key, self.export, self._written)):
                self.bytes += len(piece)
                await self._follower.offer(piece)
            self._whole = True
            return await self._exports.keep(self.key, self._written[0])
        except Unavailable as error:  # the disk is full, the database away: told to the log, not to the reader
            log.warning("an export is not kept", extra={"version_id": self.key.version_id, "reason": str(error)})
            return None
        except RLTError as error:
            log.error("an export broke off", extra={"version_id": self.key.version_id, "reason": str(error)})
            raise
        finally:
            self.began.set()
            self._follower.end()

    async def follow(self) -> AsyncIterator[bytes]:
        """The bytes while they are written, and what was missed once they are. Raises `Damaged`."""
        sent = 0
        try:
            async for piece in self._follower.pieces():
                sent += len(piece)
                yield piece
            kept = await asyncio.shield(self.task)
            if not (self._whole and sent == self.bytes):
                async for piece in self._rest(kept, sent):
                    yield piece
        finally:
            self._follower.end()

    def _rest(self, kept: Stored | None, sent: int) -> AsyncIterator[bytes]:
        if kept is not None and kept.sha256 == self._written[0].sha256:
            return self._exports.read(kept, sent)
        return self._exports.made(self.key, self.export, after=sent)


class _Follower:
    """Reads along as far as it keeps up."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
        self._left = False
        self.hurried = False
        self.moved = asyncio.Event()

    async def offer(self, piece: bytes) -> None:
        """Waits for one who is slow; no longer than others do not, and who stalls is left behind."""
        while self._queue.full() and not self._left:
            self.moved.clear()
            try:
                async with asyncio.timeout(0 if self.hurried else STALLED_SECONDS):
                    await self.moved.wait()
            except TimeoutError:
                self._left = True
        if not self._left:
            self._queue.put_nowait(piece)

    async def pieces(self) -> AsyncIterator[bytes]:
        """All that was offered until it was left behind, or the end."""
        while not (self._left and self._queue.empty()):
            piece = await self._queue.get()
            self.moved.set()
            if piece:
                yield piece

    def end(self) -> None:
        self._left = True
        self.moved.set()
        if self._queue.empty():
            self._queue.put_nowait(b"")  # wakes who waits


class _Guarded:
    """A generator that threads take turns at, so that it is never closed in mid-step."""

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces = pieces
        self._lock = Lock()

    def next(self) -> bytes | None:
        with self._lock:
            return next(self._pieces, None)

    def close(self) -> None:
        with self._lock:
            self._pieces.close()


def _skipping(pieces: Iterator[bytes], after: int) -> Generator[bytes, None, None]:
    for piece in pieces:
        if after < len(piece):
            yield piece[after:]
        after = max(0, after - len(piece))


def _read(store: Store, stored: Stored, start: int, end: int) -> Generator[bytes, None, None]:
    whole = (start, end) == (0, stored.bytes)
    digest = hashlib.sha256()
    with store.open(stored.uri) as file:
        file.seek(start)
        while start < end:
            piece = file.read(min(PIECE, end - start))
            start += len(piece)
            if whole:
                digest.update(piece)
            if not piece or (whole and start == end and digest.hexdigest() != stored.sha256):
                raise Damaged(f"{stored.uri}: not what was written")
            yield piece
