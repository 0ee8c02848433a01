"""Builds that cannot go on: they say so once, no shard dies of it, nobody spins, and they go on by themselves."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import func, select

from rlt_client.errors import APIError, Forbidden, Overloaded, Unauthorized, Unavailable
from rlt_client.schemas.builds import BuildState, ShardState
from rlt_client.schemas.explain import ExplainRequest
from rlt_jobs.builds import running, servers
from rlt_jobs.builds.models import Build, Event, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.database import Database
from rlt_jobs.outbox import Outbox
from rlt_jobs.ringing import SHARD, ring_stalled
from rlt_jobs.store.files import StoreUnavailable
from rlt_jobs.store.publish import publish

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server that is down is asked again but by `come`, however slow this machine is."""
    monkeypatch.setattr(servers, "PROBE_SECONDS", (3_600.0, 3_600.0))


async def come(services: Services) -> None:
    """A worker is woken, long enough after the last that it asks servers again that were down."""
    for server in services.servers.all:
        server._probe_at = 0.0
    await work_shard(services, 0)


async def build_of(database: Database, build_id: int) -> Build:
    async with database.begin() as session:
        return await session.get_one(Build, build_id)


async def events(database: Database, build_id: int) -> list[str]:
    async with database.begin() as session:
        query = select(Event.kind).where(Event.build_id == build_id).order_by(Event.id)
        return list(await session.scalars(query))


async def barren(database: Database, build_id: int) -> int:
    async with database.begin() as session:
        return await session.scalar(select(func.max(Shard.barren)).where(Shard.build_id == build_id)) or 0


@pytest_asyncio.fixture(loop_scope="module")
async def two(make_build: Any) -> tuple[int, int]:
    """A build that generates, in four shards, and one that only scores."""
    return await make_build(problems=8, n=1, shard_samples=2), await make_build(problems=2, n=1, kind="score")


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (("/readyz", "/explain"), Unavailable("out of memory")),
        (("/explain",), Unauthorized("the key was withdrawn")),
        (("/explain",), Forbidden("not with this key")),
    ],
    ids=["down", "unauthorized", "forbidden"],
)
async def test_a_teacher_that_takes_nothing_stalls_what_needs_it_and_nothing_else(
    services: Services, two: tuple[int, int], platform: Any, asked: tuple[str, ...], error: APIError
) -> None:
    generate, score = two
    teacher = services.teacher._http._client
    ill = [True]

    def rule(path: str, _: str) -> APIError | None:
        return error if ill[0] and path in asked and (path != "/readyz" or probing[0]) else None

    probing = [False]  # the platform stands in for both servers: only what the teacher is asked counts
    send = teacher.send

    async def marked(request: Any, **options: Any) -> Any:
        probing[0] = True
        try:
            return await send(request, **options)
        finally:
            probing[0] = False

    teacher.send = marked  # type: ignore[method-assign]
    platform.rules.append(rule)
    for _ in range(services.settings.max_barren + 2):  # however often
        await come(services)
    build = await build_of(services.database, generate)
    assert (build.state, build.stalled_at is not None) == (BuildState.running, True)
    assert build.stalled is not None
    assert "the teacher server" in build.stalled
    assert str(error.detail) in build.stalled
    assert (await events(services.database, generate), await barren(services.database, generate)) == (["stalled"], 0)
    assert (await build_of(services.database, score)).state is BuildState.finishing  # it needs no teacher
    assert await events(services.database, score) == []

    await publish(services, score)  # which goes before another shard
    ill[0] = False
    await come(services)
    build = await build_of(services.database, generate)
    assert (build.state, build.stalled_at, build.stalled) == (BuildState.finishing, None, None)
    assert await events(services.database, generate) == ["stalled", "went_on"]


@pytest.mark.parametrize("path", ["/explain", "/reward"])
async def test_a_server_that_dies_in_the_middle_blames_nobody(
    services: Services, make_build: Any, platform: Any, path: str
) -> None:
    build_id = await make_build(problems=3, n=1)
    died = [False]

    def rule(asked: str, _: str) -> APIError | None:
        died[0] = died[0] or asked == path
        return Unavailable("killed") if died[0] else None

    platform.rules.append(rule)
    await work_shard(services, 0)
    assert (await events(services.database, build_id), await barren(services.database, build_id)) == (["stalled"], 0)
    platform.rules.clear()
    await come(services)
    assert (await build_of(services.database, build_id)).state is BuildState.finishing


async def test_a_reward_server_that_is_down_stalls_every_build(
    services: Services, two: tuple[int, int], platform: Any
) -> None:
    platform.rules.append(lambda *_: Unavailable("starting"))
    await work_shard(services, 0)
    for build_id in two:
        assert (await events(services.database, build_id), await barren(services.database, build_id)) == (
            ["stalled"],
            0,
        )
        assert "the reward server" in ((await build_of(services.database, build_id)).stalled or "")


async def test_while_a_server_is_down_it_is_asked_only_now_and_then(
    services: Services, make_build: Any, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_build(problems=12, n=1, shard_samples=1)
    asked = []
    platform.rules.append(lambda path, _: asked.append(path) or Unavailable("down"))
    for _ in range(12):  # as many messages as there are shards
        await work_shard(services, 0)
    assert len(asked) == 1
    monkeypatch.setattr(servers, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 3_600))
    await work_shard(services, 0)
    assert len(asked) == 2


async def test_a_worker_is_woken_for_a_stalled_build_every_few_seconds(
    services: Services, make_build: Any, platform: Any
) -> None:
    database = services.database
    build_id = await make_build(problems=12, n=1, shard_samples=1)
    platform.rules.append(lambda *_: Unavailable("down"))
    await work_shard(services, 0)

    async def probe() -> int:
        async with database.begin() as session:
            return await ring_stalled(session, seconds=3_600)

    async with database.begin() as session:
        mine = select(Shard.id).where(Shard.build_id == build_id)
        await session.execute(Outbox.__table__.delete().where(Outbox.task == SHARD))
        await session.execute(Shard.__table__.update().where(Shard.id.in_(mine)).values(rang_at=None))
    assert [await probe(), await probe()] == [1, 0]  # one message, whatever the number of shards
    platform.rules.clear()
    await come(services)
    assert await probe() == 0  # it went on


async def test_a_queue_that_stays_full_is_told(services: Services, make_build: Any, platform: Any) -> None:
    settings = services.settings
    settings.stall_seconds = 0.3
    build_id = await make_build(problems=3, n=1)
    full = [True]

    def rule(path: str, _: str) -> APIError | None:
        return Overloaded("full", retry_after=0.05) if full[0] and path == "/explain" else None

    platform.rules.append(rule)
    working = asyncio.create_task(work_shard(services, 0))
    async with asyncio.timeout(60):
        while (await build_of(services.database, build_id)).stalled is None:  # noqa: ASYNC110 a commit elsewhere
            await asyncio.sleep(0.05)
    assert "full" in ((await build_of(services.database, build_id)).stalled or "")
    full[0] = False
    await asyncio.wait_for(working, 60)
    assert await events(services.database, build_id) == ["stalled", "went_on"]
    async with services.database.begin() as session:
        (shard,) = await session.scalars(select(Shard).where(Shard.build_id == build_id))
    assert (shard.state, shard.barren, shard.complete) == (ShardState.done, 0, 3)


async def test_a_refused_key_is_tried_with_one_request_at_a_time(
    services: Services, make_build: Any, platform: Any
) -> None:
    await make_build(problems=30, n=1)
    platform.rules.append(lambda *_: None)
    counts = []
    for _ in range(3):
        platform.requests.clear()
        asked = [0]
        platform.rules[0] = lambda path, _, asked=asked: _count(asked, path)
        await come(services)
        counts.append(asked[0])
    assert counts[1:] == [1, 1]
    assert not [r for r in platform.requests if isinstance(r, ExplainRequest)]


def _count(asked: list[int], path: str) -> APIError | None:
    if path != "/explain":
        return None
    asked[0] += 1
    return Unauthorized("no")


async def test_a_store_that_is_away_stalls_a_build_until_it_is_back(
    services: Services, make_build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await make_build(problems=2, n=1)
    seal, away = running.seal, [True]

    async def sealed(*args: Any) -> None:
        if away[0]:
            raise StoreUnavailable("no space left on device")
        await seal(*args)

    monkeypatch.setattr(running, "seal", sealed)
    monkeypatch.setattr(running, "DATABASE_PAUSE", 0.05)
    working = asyncio.create_task(work_shard(services, 0))
    async with asyncio.timeout(60):
        while (await build_of(services.database, build_id)).stalled is None:  # noqa: ASYNC110 a commit elsewhere
            await asyncio.sleep(0.05)
    away[0] = False
    await asyncio.wait_for(working, 60)
    build = await build_of(services.database, build_id)
    assert (build.state, build.stalled) == (BuildState.finishing, None)
    assert (await events(services.database, build_id), await barren(services.database, build_id)) == (
        ["stalled", "went_on"],
        0,
    )
