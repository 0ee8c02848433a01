"""Relay, reaper and reconciler against a real Postgres and a real Valkey."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_asyncio
import redis
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import delete, func, select, text, update

from rlt_jobs import outbox
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.celery_app import depth, make_celery, send
from rlt_jobs.database import Database
from rlt_jobs.leases import SHARD
from rlt_jobs.outbox import Canary, Message, Outbox, Queue
from rlt_jobs.relay import Relay
from rlt_jobs.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def configured(settings: Settings, valkey_url: str) -> Settings:
    return settings.model_copy(update={"redis_url": valkey_url, "reconcile_seconds": 30.0})


@pytest.fixture
def celery(configured: Settings) -> Iterator[Celery]:
    with redis.Redis.from_url(configured.redis_url) as client:
        client.flushall()
    app = make_celery(configured)
    yield app
    app.close()


@pytest_asyncio.fixture(loop_scope="module")
async def relay(configured: Settings, database: Database, celery: Celery) -> Relay:
    async with database.begin() as session:  # what other tests left
        await session.execute(delete(Outbox))
        await session.execute(update(Build).values(state="cancelled"))
    return Relay(configured, database, celery)


async def unsent(database: Database) -> int:
    async with database.begin() as session:
        return await session.scalar(select(func.count()).select_from(Outbox).where(Outbox.sent_at.is_(None))) or 0


async def test_messages_are_sent_once_and_marked(
    relay: Relay, database: Database, celery: Celery, make_build: Any
) -> None:
    await make_build(problems=5, n=1, shard_samples=1)
    assert await relay.relay() == 5
    assert (depth(celery, Queue.shards), await unsent(database)) == (5, 0)
    assert await relay.relay() == 0


async def test_a_message_holds_one_id_and_nothing_else(celery: Celery, configured: Settings) -> None:
    await asyncio.to_thread(send, celery, Message(Queue.shards, SHARD, 77, priority=9))
    with celery.connection_for_read() as connection:
        message = connection.SimpleQueue("shards").get(timeout=60)
        args, kwargs, _ = message.payload
        assert (args, kwargs) == ([77], {})
        assert message.headers["task"] == SHARD
        message.ack()


async def test_higher_priorities_go_first(celery: Celery) -> None:
    for ref, priority in ((1, 0), (2, 9), (3, 4)):
        await asyncio.to_thread(send, celery, Message(Queue.shards, SHARD, ref, priority))
    with celery.connection_for_read() as connection:
        queue = connection.SimpleQueue("shards")
        got = [queue.get(timeout=60) for _ in range(3)]
        assert [message.payload[0][0] for message in got] == [2, 3, 1]
        for message in got:
            message.ack()


async def test_a_relay_killed_between_sending_and_marking_sends_again(
    relay: Relay, database: Database, celery: Celery, make_build: Any
) -> None:
    await make_build(problems=3, n=1, shard_samples=1)

    async def killed() -> None:
        async with database.begin() as session:
            assert await outbox.relay(session, relay._send) == 3
            raise KeyError("SIGKILL before the commit")

    with pytest.raises(KeyError):
        await killed()
    assert (depth(celery, Queue.shards), await unsent(database)) == (3, 3)
    assert await relay.relay() == 3
    assert (depth(celery, Queue.shards), await unsent(database)) == (
        6,
        0,
    )  # doubled, which must not and does not matter


async def test_two_relays_share_the_outbox(
    relay: Relay, database: Database, celery: Celery, configured: Settings, make_build: Any
) -> None:
    await make_build(problems=40, n=1, shard_samples=1)
    other = Relay(configured, database, celery)
    counts = await asyncio.gather(relay.relay(), other.relay())
    assert (sum(counts), depth(celery, Queue.shards)) == (40, 40)


async def test_a_broker_that_is_away_leaves_the_messages_waiting(
    configured: Settings, relay: Relay, database: Database, make_build: Any
) -> None:
    await make_build(problems=1, n=1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = configured.model_copy(update={"redis_url": f"redis://127.0.0.1:{closed.getsockname()[1]}/0"})
        cut_off = Relay(nowhere, database, make_celery(nowhere))
        with pytest.raises(OperationalError):
            await cut_off.relay()
    assert await unsent(database) == 1
    assert await relay.relay() == 1


async def test_the_reconciler_rings_again_after_the_broker_forgot(
    relay: Relay, database: Database, celery: Celery, configured: Settings, make_build: Any
) -> None:
    build_id = await make_build(problems=4, n=1, shard_samples=1)
    await relay.relay()
    with redis.Redis.from_url(configured.redis_url) as client:
        client.flushall()
    await relay.reap()
    await relay.relay()
    assert depth(celery, Queue.shards) == 0  # rung just now: someone may be about to take them
    async with database.begin() as session:
        past = text("now() - interval '31 seconds'")
        await session.execute(update(Shard).where(Shard.build_id == build_id).values(rang_at=past))
    await relay.reap()
    await relay.relay()
    assert depth(celery, Queue.shards) == 4


async def test_a_long_queue_is_not_made_longer(
    relay: Relay, database: Database, celery: Celery, make_build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlt_jobs.relay.BATCH", 3)
    build_id = await make_build(problems=4, n=1, shard_samples=1)
    while await relay.relay():
        pass
    async with database.begin() as session:
        past = text("now() - interval '1 hour'")
        await session.execute(update(Shard).where(Shard.build_id == build_id).values(rang_at=past))
    await relay.reap()
    assert await unsent(database) == 0


async def test_only_one_of_several_reapers_works_at_a_time(relay: Relay, database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text(f"SELECT pg_advisory_xact_lock({0x524C54_02})"))
        await relay.reap()  # returns at once: it does not wait for the lock


async def test_canaries_are_rung_in_every_queue_and_their_arrival_is_written(relay: Relay, database: Database) -> None:
    await relay.canary()
    async with database.begin() as session:
        rung = select(Outbox.queue).where(Outbox.task == "rlt_jobs.canary")
        assert sorted(await session.scalars(rung)) == ["exports", "imports", "shards"]
        await outbox.answer_canary(session, "shards")
    async with database.begin() as session:
        arrived = {row.queue: row.arrived_at is not None for row in await session.scalars(select(Canary))}
    assert arrived == {"shards": True, "imports": False, "exports": False}


async def test_the_loops_survive_failures_and_stop_when_told(
    relay: Relay, configured: Settings, make_build: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlt_jobs.relay.PAUSE_AFTER_FAILURE", 0.05)
    configured.relay_seconds = 0.05
    failures = iter(range(2))
    original = relay.relay

    async def flaky() -> int:
        if next(failures, None) is not None:
            raise ValueError("a bug")
        return await original()

    monkeypatch.setattr(relay, "relay", flaky)
    await make_build(problems=2, n=1)
    stop = asyncio.Event()
    running = asyncio.create_task(relay.run(stop))
    async with asyncio.timeout(60):
        while await unsent(database):  # noqa: ASYNC110 the event is a commit of another connection
            await asyncio.sleep(0.05)
    stop.set()
    await asyncio.wait_for(running, 60)
