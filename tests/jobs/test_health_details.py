"""`GET /health/details`: what is well, and each thing that is not, told without an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from sqlalchemy import text, update

from rlt_client.schemas.health import JobsHealth
from rlt_jobs import schema
from rlt_jobs.app import build as build_app
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.celery_app import CANARY, make_celery
from rlt_jobs.database import Database
from rlt_jobs.leases import reap
from rlt_jobs.outbox import answer_canary, ring_canaries
from rlt_jobs.relay import Relay
from rlt_jobs.settings import Settings
from rlt_service.keys import create_token, hash_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = {scope: create_token() for scope in ("admin", "build")}
KEYS = ";".join(f"{scope}er {scope} sha256:{hash_token(token)}" for scope, token in TOKENS.items())
Ask = Callable[..., Any]


@pytest.fixture
def configured(settings: Settings, valkey_url: str) -> Settings:
    return settings.model_copy(update={"redis_url": valkey_url, "keys": KEYS})


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(settings)
    headers = {"authorization": f"Bearer {TOKENS['admin']}"}
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://jobs") as http:
        http.headers.update(headers)
        yield http


async def details(settings: Settings) -> JobsHealth:
    async with serving(settings) as http:
        reply = await http.get("/health/details")
    assert reply.status_code == 200, reply.text
    return JobsHealth.model_validate_json(reply.content)


async def test_all_is_well(configured: Settings, database: Database) -> None:
    began = datetime.now(UTC)
    async with database.begin() as session:
        await ring_canaries(session, CANARY)
        await answer_canary(session, "shards")
    found = await details(configured)
    ended = datetime.now(UTC)
    assert (found.database.ok, found.database.revision, found.database.newest) == (
        True,
        schema.newest(),
        schema.newest(),
    )
    assert found.database.version is not None
    assert int(found.database.version.split(".")[0]) >= 15
    assert found.database.now is not None
    assert began <= found.now <= ended
    assert began <= found.database.now <= ended
    assert (found.broker.ok, found.broker.maxmemory_policy) == (True, "noeviction")
    assert found.store.ok
    assert 0 < (found.store.free_bytes or 0) < (found.store.total_bytes or 0)
    queues = {queue.name: queue for queue in found.queues}
    assert set(queues) == {"shards", "imports", "exports"}
    assert (queues["shards"].messages, queues["imports"].answered_seconds) == (0, None)
    passed = (ended - began).total_seconds()
    assert 0 < (queues["shards"].answered_seconds or 0) < passed
    assert 0 < (queues["imports"].rung_seconds or 0) < passed
    assert found.outbox is not None
    assert found.outbox.waiting == 3


async def test_only_administrators_may_ask(configured: Settings) -> None:
    async with serving(configured) as http:
        reply = await http.get("/health/details", headers={"authorization": f"Bearer {TOKENS['build']}"})
        assert (reply.status_code, reply.json()["type"]) == (403, "missing_scope")
        del http.headers["authorization"]
        assert (await http.get("/health/details")).status_code == 401


async def test_builds_in_trouble_are_named(
    configured: Settings, database: Database, make_build: Any, claim: Any
) -> None:
    build_id = await make_build(problems=3, n=1, shard_samples=1, owner="bob")
    overdue = await claim(0)
    async with database.begin() as session:
        shards = update(Shard).where(Shard.build_id == build_id)
        dead = shards.where(Shard.id != overdue.shard_id, Shard.lo == 2)
        await session.execute(dead.values(state="dead", error="RuntimeError: broken"))
        await session.execute(
            shards.where(Shard.id == overdue.shard_id).values(lease_until=text("now() - '1 s'::interval"))
        )
        stalled = {"stalled": "the teacher server: down", "stalled_at": text("now() - '60 s'::interval")}
        await session.execute(update(Build).where(Build.id == build_id).values(stalled))
    found = await details(configured)
    assert found.shards is not None
    assert (found.shards.ready, found.shards.running, found.shards.overdue) == (1, 1, 1)
    (troubled,) = found.troubled
    assert (troubled.id, troubled.owner, troubled.stalled) == (build_id, "bob", "the teacher server: down")
    assert (troubled.dead_shards, troubled.last_error) == (1, "RuntimeError: broken")
    assert 59 < (troubled.stalled_seconds or 0) < 120


async def test_what_is_away_is_told(configured: Settings, tmp_path: Path) -> None:
    nowhere = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    away = {"database_url": nowhere, "redis_url": "redis://127.0.0.1:1/0", "store": str(tmp_path / "file" / "store")}
    (tmp_path / "file").write_text("not a folder")
    found = await details(configured.model_copy(update=away))
    assert [found.database.ok, found.broker.ok, found.store.ok] == [False, False, False]
    assert "not available" in (found.database.detail or "")
    assert "ConnectionError" in (found.broker.detail or "")
    assert found.queues == []


async def test_an_old_schema_and_a_broker_that_evicts_are_told(
    configured: Settings, empty_postgres_url: str, valkey_url: str
) -> None:
    from rlt_jobs import migrate

    migrate.upgrade(empty_postgres_url, schema.order()[-2])
    with redis.Redis.from_url(valkey_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            found = await details(configured.model_copy(update={"database_url": empty_postgres_url}))
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert (found.broker.ok, found.broker.maxmemory_policy) == (True, "allkeys-lru")
    assert (found.database.ok, found.database.revision) == (False, schema.order()[-2])
    assert "run `rlt-jobs migrate`" in (found.database.detail or "")
    assert found.outbox is None


async def test_a_relay_counts_what_it_does(
    configured: Settings, database: Database, make_build: Any, claim: Any
) -> None:
    await make_build(problems=2, n=1, shard_samples=1)
    lease = await claim(0)
    async with database.begin() as session:
        await reap(session, max_barren=5)  # what other tests left
        await session.execute(
            update(Shard).where(Shard.id == lease.shard_id).values(lease_until=text("now() - '1 s'::interval"))
        )
    celery = make_celery(configured)
    relay = Relay(configured, database, celery)
    await relay.reap()
    await relay.relay()
    assert relay.metrics.reaped._value.get() == 1
    assert relay.metrics.messages.labels("shards")._value.get() >= 2
    stop = asyncio.Event()

    async def fails() -> None:
        stop.set()
        raise OSError("disk")

    await relay._repeat(stop, "sweep", 0.0, fails)
    assert relay.metrics.failures.labels("sweep")._value.get() == 1
    celery.close()
