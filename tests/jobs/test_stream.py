"""Progress as server-sent events: what comes, what it costs the database, and that it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import func, select, text, update

from rlt_client._events import Decoder, ServerSentEvent
from rlt_client.errors import NotFound, Unavailable
from rlt_client.schemas.builds import Build as WireBuild
from rlt_client.schemas.builds import BuildEvent, BuildState, ShardState
from rlt_jobs.app import build as build_app
from rlt_jobs.builds import streaming
from rlt_jobs.builds.models import Build, Event, Shard
from rlt_jobs.builds.service import BuildService
from rlt_jobs.builds.stalls import stall_build
from rlt_jobs.builds.streaming import Streams, Watching
from rlt_jobs.database import Database
from rlt_jobs.leases import reap
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_service.keys import create_token, hash_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

MakeBuild = Callable[..., Awaitable[int]]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "EVERY", 0.05)


class Counted(BuildService):
    """How often builds were looked at."""

    looks = 0

    async def get(self, owner: str, build_id: int) -> WireBuild:
        self.looks += 1
        return await super().get(owner, build_id)


@pytest_asyncio.fixture(loop_scope="module")
async def builds(settings: Settings, database: Database, store: Store) -> Counted:
    return Counted(settings, database, store)


@pytest.fixture
def streams(database: Database, builds: Counted) -> Streams:
    return Streams(database, builds)


async def change(database: Database, build_id: int, **values: Any) -> None:
    async with database.begin() as session:
        await session.execute(update(Build).where(Build.id == build_id).values(values))


async def tell(database: Database, build_id: int, *details: str) -> None:
    async with database.begin() as session:
        session.add_all([Event(build_id=build_id, kind="bad_row", detail=detail) for detail in details])


@asynccontextmanager
async def watched(streams: Streams, build_id: int, last: int | None = None) -> AsyncIterator[Reader]:
    watching = await streams.watch("ann", build_id, last)
    async with aclosing(watching):
        yield Reader(watching)


class Reader:
    """The events of one watcher."""

    def __init__(self, watching: Watching) -> None:
        self.closing = False
        self._frames = watching.frames(lambda: self.closing)
        self._decoder = Decoder()
        self._ready: list[ServerSentEvent] = []
        self.raw = b""

    async def next(self) -> ServerSentEvent:
        while not self._ready:
            async with asyncio.timeout(60):
                piece = await anext(self._frames)
            self.raw += piece
            self._ready += self._decoder.feed(piece)
        return self._ready.pop(0)

    async def rest(self) -> list[ServerSentEvent]:
        found = []
        while True:
            try:
                found.append(await self.next())
            except StopAsyncIteration:
                return found

    async def state(self) -> BuildState:
        event = await self.next()
        assert event.name == "progress"
        return WireBuild.model_validate_json(event.data).state


async def test_changes_and_events_come_as_they_happen_and_done_ends_it(
    database: Database, streams: Streams, make_build: MakeBuild
) -> None:
    build_id = await make_build()
    await tell(database, build_id, "before")
    async with watched(streams, build_id) as reader:
        assert await reader.state() is BuildState.running
        await change(database, build_id, state=BuildState.paused)
        assert await reader.state() is BuildState.paused
        await tell(database, build_id, "one", "two")
        events = [await reader.next(), await reader.next()]
        assert [(e.name, BuildEvent.model_validate_json(e.data).detail) for e in events] == [
            ("event", "one"),
            ("event", "two"),
        ]
        await tell(database, build_id, "last")
        await change(database, build_id, state=BuildState.done)
        assert [each.name for each in await reader.rest()] == ["event", "progress", "done"]


async def test_what_does_not_change_is_not_told_again(
    database: Database, streams: Streams, builds: Counted, make_build: MakeBuild
) -> None:
    async with watched(streams, await make_build()) as reader:
        await reader.next()
        looks, waiting = builds.looks, asyncio.ensure_future(reader.next())
        while builds.looks < looks + 4:  # noqa: ASYNC110 nothing of the service tells how often it looks
            await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()


async def test_a_build_that_is_deleted_before_its_end_was_seen_ends_the_stream(
    database: Database, streams: Streams, make_build: MakeBuild
) -> None:
    build_id = await make_build()
    async with watched(streams, build_id) as reader:
        await reader.state()
        await change(database, build_id, state=BuildState.cancelled, deleted_at=func.now())
        assert await reader.rest() == []
    with pytest.raises(NotFound):
        await streams.watch("ann", build_id, None)


async def test_an_ended_build_is_told_at_once(database: Database, streams: Streams, make_build: MakeBuild) -> None:
    build_id = await make_build()
    await change(database, build_id, state=BuildState.cancelled)
    async with watched(streams, build_id) as reader:
        assert [each.name for each in await reader.rest()] == ["progress", "done"]


async def test_events_are_told_from_the_last_known_on(
    database: Database, streams: Streams, make_build: MakeBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one look reads and more than a feed holds, so that some are read for this watcher alone."""
    monkeypatch.setattr(streaming, "EVENTS_READ", 3)
    monkeypatch.setattr(streaming, "EVENTS_HELD", 4)
    build_id = await make_build()
    await tell(database, build_id, *(f"e{i}" for i in range(8)))
    async with watched(streams, build_id, 0) as reader:
        told = [await reader.next() for _ in range(8)]
        await tell(database, build_id, *(f"e{i}" for i in range(8, 20)))
        while len([each for each in told if each.name == "event"]) < 20:
            told.append(await reader.next())
    events = [BuildEvent.model_validate_json(each.data) for each in told if each.name == "event"]
    assert [each.detail for each in events] == [f"e{i}" for i in range(20)]
    assert f"id: {events[7].id}\n".encode() in reader.raw
    async with watched(streams, build_id, events[17].id) as reader:
        again = [BuildEvent.model_validate_json((await reader.next()).data).detail for _ in range(2)]
    assert again == ["e18", "e19"]


async def test_an_event_is_told_though_a_later_one_was_written_meanwhile(
    database: Database, streams: Streams, make_build: MakeBuild
) -> None:
    """The reaper gives a shard up and is not done yet, as it looks at every build, when another part of the build is
    told of: whoever reads on from that event must not have passed the reaper's."""
    build_id = await make_build(problems=2, n=1, shard_samples=1)
    async with database.begin() as session:
        past = func.now() - timedelta(hours=1)
        fallen = {"state": ShardState.running, "barren": 1, "lease_token": uuid4(), "lease_until": past}
        last = select(func.max(Shard.id)).where(Shard.build_id == build_id).scalar_subquery()
        await session.execute(update(Shard).where(Shard.id == last).values(fallen))

    async def stall() -> None:
        async with database.begin() as session:
            await stall_build(session, build_id, "the teacher is down")

    async with watched(streams, build_id) as reader:
        await reader.state()
        told: list[ServerSentEvent] = []
        async with database.begin() as session:
            await reap(session, max_barren=1)
            await session.flush()
            stalling = asyncio.create_task(stall())
            while not (stalling.done() or await waits_for_a_lock(database)):  # noqa: ASYNC110 the database tells nobody
                await asyncio.sleep(0.01)
            while stalling.done() and "event" not in [each.name for each in told]:
                told.append(await reader.next())
        await stalling
        await change(database, build_id, state=BuildState.cancelled)
        told += await reader.rest()
    events = [BuildEvent.model_validate_json(each.data) for each in told if each.name == "event"]
    assert [event.kind for event in events] == ["shard_dead", "stalled"]


async def waits_for_a_lock(database: Database) -> bool:
    """Whether a transaction in this database waits for another one."""
    waiting = text(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
    )
    async with database.begin() as session:
        return bool(await session.scalar(waiting))


async def test_many_watchers_cost_one_look(
    database: Database, streams: Streams, builds: Counted, make_build: MakeBuild
) -> None:
    build_id = await make_build()
    watching = [await streams.watch("ann", build_id, None) for _ in range(20)]
    readers = [Reader(each) for each in watching]
    await asyncio.gather(*(reader.next() for reader in readers))
    looks, began = builds.looks, asyncio.get_running_loop().time()
    await asyncio.sleep(0.5)
    assert builds.looks - looks <= (asyncio.get_running_loop().time() - began) / streaming.EVERY + 1
    await change(database, build_id, state=BuildState.done)
    ends = await asyncio.gather(*(reader.rest() for reader in readers))
    assert {tuple(event.name for event in end) for end in ends} == {("progress", "done")}
    for each in watching:
        await each.aclose()
    assert streams._feeds == {}


async def test_the_last_to_leave_ends_the_looking(
    database: Database, streams: Streams, builds: Counted, make_build: MakeBuild
) -> None:
    build_id = await make_build()
    async with watched(streams, build_id) as first:
        async with watched(streams, build_id) as second:
            await second.next()
        assert await first.state() is BuildState.running
        assert build_id in streams._feeds
    assert streams._feeds == {}
    await asyncio.sleep(0.1)
    looks = builds.looks
    await asyncio.sleep(0.2)
    assert builds.looks == looks


async def test_a_server_that_stops_ends_the_stream_without_done(streams: Streams, make_build: MakeBuild) -> None:
    async with watched(streams, await make_build()) as reader:
        await reader.next()
        reader.closing = True
        assert await reader.rest() == []


async def test_a_database_that_goes_away_is_waited_for(
    database: Database, streams: Streams, builds: Counted, make_build: MakeBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await make_build()
    async with watched(streams, build_id) as reader:
        await reader.next()
        with monkeypatch.context() as patch:

            async def away(*_: object) -> WireBuild:
                raise Unavailable("the database is not available")

            patch.setattr(builds, "get", away)
            await asyncio.sleep(0.2)
        await change(database, build_id, state=BuildState.failed)
        assert [each.name for each in await reader.rest()] == ["progress", "done"]


async def test_silence_is_broken_by_comments(
    streams: Streams, make_build: MakeBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PING_S", 0.1)
    watching = await streams.watch("ann", await make_build(), None)
    async with aclosing(watching):
        frames = watching.frames(lambda: False)
        assert b"progress" in await anext(frames)
        assert await anext(frames) == b": ping\n\n"


async def test_a_build_that_runs_again_is_watched_anew(
    database: Database, streams: Streams, make_build: MakeBuild
) -> None:
    build_id = await make_build()
    await change(database, build_id, state=BuildState.done)
    async with watched(streams, build_id) as early:
        await change(database, build_id, state=BuildState.running)
        async with watched(streams, build_id) as reader:
            assert await reader.state() is BuildState.running
            assert [each.name for each in await early.rest()] == ["progress", "done"]
            await change(database, build_id, state=BuildState.paused)
            assert await reader.state() is BuildState.paused


async def test_anothers_build_is_not_watched(streams: Streams, make_build: MakeBuild) -> None:
    with pytest.raises(NotFound):
        await streams.watch("bob", await make_build(), None)
    assert streams._feeds == {}


async def test_over_http(settings: Settings, database: Database, make_build: MakeBuild) -> None:
    build_id, token = await make_build(), create_token()
    await tell(database, build_id, "one")
    await change(database, build_id, state=BuildState.done)
    app = build_app(settings.model_copy(update={"keys": f"ann build sha256:{hash_token(token)}"}))
    key = {"authorization": f"Bearer {token}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://jobs", headers=key) as client,
    ):
        reply = await client.get(f"/builds/{build_id}/stream", headers={"last-event-id": "0"})
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert [each.name for each in Decoder().feed(reply.content)] == ["event", "progress", "done"]
        assert (await client.get("/builds/999999/stream")).status_code == 404
        report = (await client.get(f"/builds/{build_id}/report")).json()
        assert (report["build"], report["counts"]["missing"], report["generation"]) == (build_id, 6, [])
        assert (await client.get(f"/builds/{build_id}/stream", headers={"last-event-id": "x"})).status_code == 422
