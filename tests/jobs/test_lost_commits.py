"""A connection that breaks at the commit of what was only read: the reading is repeated, and must find the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import Unavailable
from rlt_client.schemas.builds import RescoreRequest, ShardState
from rlt_jobs.builds import running
from rlt_jobs.builds.derived import DerivedBuilds
from rlt_jobs.builds.making import Making
from rlt_jobs.builds.models import Sample, Score, Shard
from rlt_jobs.builds.rescoring import Rescoring
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.store.publish import publish

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """What was read by transactions that broke: the first of every two."""
    found: list[list[tuple[int, int]]] = []
    monkeypatch.setattr(running, "DATABASE_PAUSE", 0.01)
    for task in (Making, Rescoring):
        monkeypatch.setattr(task, "todo", _breaking(task.todo, found))
    return found


def _breaking(todo: Any, lost: list[list[tuple[int, int]]]) -> Any:
    calls = iter(range(10**6))

    async def broken(self: Any, session: AsyncSession) -> list[tuple[int, int]]:
        read: list[tuple[int, int]] = await todo(self, session)
        if next(calls) % 2 == 0:
            lost.append(read)
            raise Unavailable("the connection broke at the commit")
        return read

    return broken


async def _work(services: Services, build_id: int) -> Shard:
    async with services.database.begin() as session:
        shard = (await session.scalars(select(Shard).where(Shard.build_id == build_id))).one()
    await work_shard(services, shard.id)
    async with services.database.begin() as session:
        return await session.get_one(Shard, shard.id)


async def test_no_sample_is_taken_for_made(services: Services, make_build: Any, lost: list[Any]) -> None:
    build_id = await make_build(problems=5, n=2)
    shard = await _work(services, build_id)
    assert len(lost[0]) == 10
    assert (shard.state, shard.complete) == (ShardState.done, 10)
    async with services.database.begin() as session:
        assert await session.scalar(select(func.count()).where(Sample.build_id == build_id)) == 10


async def test_no_sample_is_taken_for_scored(
    services: Services, make_build: Any, platform: Any, lost: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await make_build(problems=5, n=2)
    await _work(services, data)
    await publish(services, data)
    monkeypatch.setattr(platform, "_reward", lambda _: -5.0)
    request = RescoreRequest.model_validate({"spec": {"preset": "rlt", "lambda": 2}})
    build_id = await DerivedBuilds(services.settings, services.database).rescore("ann", data, request, None)
    lost.clear()
    shard = await _work(services, build_id)
    assert sum(map(len, lost)) > 0
    assert (shard.state, shard.complete, shard.scored) == (ShardState.done, 10, 10)
    async with services.database.begin() as session:
        again = select(func.count()).where(Score.build_id == data, Score.reward == -5.0)
        assert await session.scalar(again) == 10


async def test_a_shard_that_asked_for_nothing_is_not_done(
    services: Services, make_build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any) -> list[tuple[int, int]]:
        return []

    build_id = await make_build(problems=5, n=2)
    with monkeypatch.context() as patched:
        patched.setattr(Making, "todo", nothing)
        shard = await _work(services, build_id)
    assert (shard.state, shard.complete) == (ShardState.ready, 0)
    assert "10 samples have no outcome" in str(shard.error)
    async with asyncio.timeout(60):
        while shard.state is ShardState.ready:  # it rests a little after a lease that brought nothing
            shard = await _work(services, build_id)
    assert (shard.state, shard.complete) == (ShardState.done, 10)
