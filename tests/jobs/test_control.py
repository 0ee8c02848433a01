"""Pause, cancel and resume as a user meets them: within seconds, with the settings that are shipped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import func, select, update

from rlt_client.errors import Conflict
from rlt_client.schemas.builds import BuildState, ShardState
from rlt_jobs.builds.holding import held_build
from rlt_jobs.builds.models import Build, Sample, Shard
from rlt_jobs.builds.service import BuildService
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.outbox import Outbox
from rlt_jobs.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 8  # within which it acts: neither a flush nor a heartbeat helps it in that time
shipped = Settings(database_url="postgresql+psycopg://nowhere/none")


class Teacher:
    """Counts the explanations under way: the first few are written at once, the others take for ever."""

    def __init__(self, services: Services, quick: int) -> None:
        self.under_way = 0
        self._explain = services.teacher.explain
        self._quick = quick

    async def explain(self, request: Any) -> Any:
        self._quick -= 1
        if self._quick < 0:
            self.under_way += 1
            try:
                await asyncio.sleep(3_600)
            finally:
                self.under_way -= 1
        return await self._explain(request)


@pytest_asyncio.fixture(loop_scope="module")
async def usual(services: Services) -> AsyncIterator[Services]:
    """With the pace of control and flushing that is shipped."""
    names = ("control_seconds", "heartbeat_seconds", "lease_seconds", "flush_seconds")
    paces = {name: getattr(shipped, name) for name in names}
    yield replace(services, settings=services.settings.model_copy(update=paces))


@pytest.fixture
def api(services: Services) -> BuildService:
    return BuildService(services.settings, services.database, services.store)


async def within(seconds: int, work: asyncio.Task[None] | Coroutine[Any, Any, None]) -> None:
    """As `asyncio.wait_for`, of seconds in which this machine does not stand still."""
    task = asyncio.ensure_future(work)
    for _ in range(10 * seconds):
        await asyncio.wait([task], timeout=0.1)
        if task.done():
            return await task
    task.cancel()
    raise TimeoutError


async def waiting(services: Services, teacher: Teacher) -> asyncio.Task[None]:
    """A worker with all its places taken by explanations that do not end, and all others scored."""
    services.teacher.explain = teacher.explain  # type: ignore[method-assign]
    working = asyncio.create_task(work_shard(services, 0))
    async with asyncio.timeout(60):
        while teacher.under_way < services.settings.max_in_flight or services.servers.reward.flow.busy:  # noqa: ASYNC110 nothing to wait for but the counts
            await asyncio.sleep(0.01)
    return working


@pytest.mark.parametrize("action", ["pause", "cancel"])
async def test_a_worker_stops_within_seconds_and_keeps_what_is_finished(
    usual: Services, api: BuildService, make_build: Any, action: str
) -> None:
    build_id = await make_build(problems=30, n=1)
    teacher = Teacher(usual, quick=7)
    working = await waiting(usual, teacher)
    await api.act("ann", build_id, action)
    await within(SECONDS, working)
    assert teacher.under_way == 0  # the requests were cancelled: nothing more is generated for nobody
    async with usual.database.begin() as session:
        (shard,) = await session.scalars(select(Shard).where(Shard.build_id == build_id))
        kept = await session.scalar(select(func.count()).where(Sample.build_id == build_id))
    assert (shard.state, shard.barren, shard.complete, kept) == (ShardState.ready, 0, 7, 7)


async def test_a_build_that_is_resumed_is_rung_for_and_loses_nothing(
    usual: Services, api: BuildService, make_build: Any
) -> None:
    build_id = await make_build(problems=10, n=1)
    explain = usual.teacher.explain
    working = await waiting(usual, Teacher(usual, quick=3))
    await api.act("ann", build_id, "pause")
    await working
    async with usual.database.begin() as session:
        await session.execute(update(Outbox).values(sent_at=func.now()))
    await api.act("ann", build_id, "resume")
    async with usual.database.begin() as session:
        assert await session.scalar(select(func.count()).where(Outbox.sent_at.is_(None))) == 1
    usual.teacher.explain = explain  # type: ignore[method-assign]
    await work_shard(usual, 0)
    assert (await api.get("ann", build_id)).state is BuildState.finishing


async def test_only_the_build_that_is_paused_stops(usual: Services, api: BuildService, make_build: Any) -> None:
    """One worker holds shards of both."""
    first, second = await make_build(problems=2, n=1), await make_build(problems=2, n=1)
    teacher = Teacher(usual, quick=0)
    working = await waiting(usual, teacher)
    await api.act("ann", first, "pause")

    async def given_up() -> None:
        while teacher.under_way > 2:  # noqa: ASYNC110 as above
            await asyncio.sleep(0.01)

    await within(SECONDS, given_up())
    assert not working.done()
    await api.act("ann", second, "cancel")
    await within(SECONDS, working)
    assert teacher.under_way == 0


@pytest.mark.parametrize("state", [BuildState.importing, BuildState.finishing])
async def test_an_import_or_publication_is_cancelled_within_seconds(
    usual: Services, api: BuildService, make_build: Any, state: BuildState
) -> None:
    build_id = await make_build(problems=1, n=1)
    async with usual.database.begin() as session:
        await session.execute(update(Build).where(Build.id == build_id).values(state=state))
    holds = asyncio.Event()

    async def hold() -> None:
        async with held_build(usual, build_id, state) as token:
            assert token is not None
            holds.set()
            await asyncio.sleep(3_600)

    holding = asyncio.create_task(hold())
    await holds.wait()
    await api.act("ann", build_id, "cancel")
    await within(SECONDS, holding)
    assert (await api.get("ann", build_id)).state is BuildState.cancelled


async def test_a_priority_is_changed_while_a_build_is_open(api: BuildService, make_build: Any) -> None:
    build_id = await make_build(problems=1, n=1)
    assert (await api.prioritise("ann", build_id, 7)).priority == 7
    await api.act("ann", build_id, "cancel")
    with pytest.raises(Conflict):
        await api.prioritise("ann", build_id, 1)
