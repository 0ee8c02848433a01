"""Progress as server-sent events. However many watch a build, it is looked at once a second.

Frames are written once and shared. A reader that is slow misses states in between, never an event: what its feed does
not hold any more is read from the database for it alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from rlt_client.errors import NotFound, RLTError
from rlt_client.schemas.builds import Build, BuildEvent
from rlt_jobs.builds import browse, repository, views
from rlt_jobs.builds.lifecycle import ENDED
from rlt_jobs.builds.service import BuildService
from rlt_jobs.database import Database
from rlt_service.sse import KEEPALIVE_COMMENT, PING_S, format_sse_event

__all__ = ["Streams", "Watching"]

log = logging.getLogger(__name__)

EVERY: Final = 1.0  # seconds between two looks: what a person can follow
EVENTS_HELD: Final = 500  # events of a build in memory
EVENTS_READ: Final = 500  # events of one look: a source of bad rows makes thousands
ESTIMATES: Final = {"tokens_per_second", "eta_seconds"}  # change with the clock alone


class _Feed:
    """One build, looked at while somebody watches."""

    def __init__(self, build: Build, last_event: int) -> None:
        self.watchers = 1
        self.build = build
        self.shown = _frame("progress", build)
        self.revision = 0
        self.after = last_event
        """`events` holds all that came later than this one."""
        self.events: deque[tuple[int, bytes]] = deque()
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.gone = False
        """Deleted before its end was seen: there is nothing more to tell."""

    @property
    def last_event(self) -> int:
        return self.events[-1][0] if self.events else self.after

    @property
    def ended(self) -> bool:
        return self.build.state in ENDED

    def take(self, build: Build, events: list[BuildEvent]) -> None:
        for event in events:
            self.events.append((event.id, _frame("event", event, id=event.id)))
        while len(self.events) > EVENTS_HELD:
            self.after, _ = self.events.popleft()
        news = _facts(build) != _facts(self.build)
        if news:
            self.build, self.shown = build, _frame("progress", build)
            self.revision += 1
        if news or events:
            self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Streams:
    """The feeds of one process."""

    def __init__(self, database: Database, builds: BuildService) -> None:
        self._database = database
        self._builds = builds
        self._feeds: dict[int, _Feed] = {}

    async def watch(self, owner: str, build_id: int, last_event: int | None) -> Watching:
        """Begin to watch. Close what it gives.

        Args:
            last_event: the last event that is known already; with None, only events from now on are told.

        Raises:
            NotFound
        """
        build = await self._builds.get(owner, build_id)
        newest = await self._newest_event(build_id)
        feed = self._feeds.get(build_id)
        if feed is None or feed.ended or feed.gone:  # it may run again. Nothing is awaited until this one is there
            feed = self._feeds[build_id] = _Feed(build, newest)
            feed.task = asyncio.create_task(self._keep(owner, feed))
        else:
            feed.watchers += 1
        return Watching(self, feed, newest if last_event is None else last_event)

    def leave(self, feed: _Feed) -> None:
        feed.watchers -= 1
        if feed.watchers == 0:
            if self._feeds.get(feed.build.id) is feed:
                del self._feeds[feed.build.id]
            if feed.task is not None:
                feed.task.cancel()

    async def events(self, build_id: int, after: int) -> list[BuildEvent]:
        async with self._database.begin() as session:
            rows = await browse.events(session, build_id, after, EVENTS_READ)
        return [views.event_view(row) for row in rows]

    async def _newest_event(self, build_id: int) -> int:
        async with self._database.begin() as session:
            return await repository.newest_event(session, build_id)

    async def _keep(self, owner: str, feed: _Feed) -> None:
        while not (feed.ended or feed.gone):
            await asyncio.sleep(EVERY)
            try:
                build = await self._builds.get(owner, feed.build.id)
                feed.take(build, await self.events(feed.build.id, feed.last_event))  # later: those of the end too
            except NotFound:
                feed.gone = True
                feed.wake()
            except RLTError as error:  # the database is away: those who watch wait with it
                log.warning("build cannot be watched: %s", error, extra={"build_id": feed.build.id})
            except Exception:  # a feed that dies silently would leave its watchers with pings for ever
                log.exception("build cannot be watched; tried again", extra={"build_id": feed.build.id})


class Watching:
    """One watcher's place."""

    def __init__(self, streams: Streams, feed: _Feed, last_event: int) -> None:
        self._streams = streams
        self._feed = feed
        self._last_event = last_event
        self._revision = -1
        self._open = True

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._streams.leave(self._feed)

    async def frames(self, stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
        """`event` and `progress` as they come, `done` at the end of the build; comments while nothing comes.

        Ends without `done` where the server stops or the build is deleted: ask again, and it will be told.
        """
        sent = time.monotonic()
        while not stopping():
            changed, ended, gone = self._feed.changed, self._feed.ended, self._feed.gone
            frames = [frame async for frame in self._events()]
            if self._revision != self._feed.revision:
                self._revision = self._feed.revision
                frames.append(self._feed.shown)
            if ended:
                frames.append(_frame("done", self._feed.build))
            if not frames and time.monotonic() - sent >= PING_S:
                frames.append(KEEPALIVE_COMMENT)
            if frames:
                yield b"".join(frames)
                sent = time.monotonic()
            if ended or gone:
                return
            await _either(changed, EVERY)

    async def _events(self) -> AsyncIterator[bytes]:
        while self._last_event < self._feed.after:
            page = await self._streams.events(self._feed.build.id, self._last_event)
            if not page:
                self._last_event = self._feed.after
            for event in page:
                self._last_event = event.id
                yield _frame("event", event, id=event.id)
        for event_id, frame in list(self._feed.events):
            if event_id > self._last_event:
                self._last_event = event_id
                yield frame


async def _either(changed: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        pass


def _facts(build: Build) -> Build:
    return build.model_copy(update=dict.fromkeys(ESTIMATES))


def _frame(name: str, content: Build | BuildEvent, *, id: int | None = None) -> bytes:
    data = content.model_dump_json(by_alias=True)
    return format_sse_event(event=name, data_str=data, id=None if id is None else str(id))
