"""A disk that refuses writes for a while: nothing dies of it, nothing is left behind, and all goes on by itself."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import select

from rlt_jobs.app import build as build_app
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.store import publish as publishing
from rlt_jobs.store.check import check
from rlt_jobs.store.publish import publish

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def api(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(services.settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Every file meets a full disk when it is synced, until it is undone."""

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("rlt_jobs.store.folder.os.fsync", refuse)
        yield patched


@contextmanager
def gone(services: Services) -> Iterator[None]:
    """The store's folder is away, and a plain file stands in its place."""
    root = Path(services.store.url)
    away = root.rename(root.with_name("away"))
    root.write_bytes(b"")
    yield
    root.unlink()
    away.rename(root)


async def logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    async with asyncio.timeout(60):
        while words not in caplog.text:  # noqa: ASYNC110 a log has no event
            await asyncio.sleep(0.05)


async def test_a_full_disk_is_waited_for_when_a_shard_is_sealed(
    services: Services, make_build: Any, full: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build_id = await make_build(problems=2, n=2)
    async with services.database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == build_id))
    working = asyncio.create_task(work_shard(services, shard_id or 0))
    await logged(caplog, "No space left")
    full.undo()
    await working
    async with services.database.begin() as session:
        shard = await session.get_one(Shard, shard_id)
    assert (shard.state, shard.barren, shard.complete) == ("done", 0, 4)
    assert len(list(services.store.list(f"builds/{build_id}"))) == 1


async def test_a_full_disk_is_waited_for_when_a_version_is_published(
    services: Services, make_build: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publishing, "PAUSE", 0.05)
    build_id = await make_build(problems=2, n=2)
    async with services.database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == build_id))
    await work_shard(services, shard_id or 0)
    with gone(services):
        task = asyncio.create_task(publish(services, build_id))
        await logged(caplog, "publishing waits")
    await task
    async with services.database.begin() as session:
        build = await session.get_one(Build, build_id)
    assert (build.state, build.error) == ("done", None)
    assert [line async for line in check(services.database, services.store)] == []


async def test_an_upload_to_a_full_disk_is_refused_in_clear_words_and_leaves_nothing(
    services: Services, api: httpx.AsyncClient, full: pytest.MonkeyPatch
) -> None:
    before = sorted(entry.uri for entry in services.store.list())
    body = b'{"question": "Q", "answer": "A"}\n'
    refused = await api.post("/uploads", content=body)
    assert (refused.status_code, refused.json()["type"]) == (507, "store_full")
    assert "No space left on device" in refused.json()["detail"]
    assert sorted(entry.uri for entry in services.store.list()) == before
    full.undo()
    assert (await api.post("/uploads", content=body)).status_code == 201


async def test_a_store_that_is_gone_is_told_by_readiness_and_by_uploads(
    services: Services, api: httpx.AsyncClient
) -> None:
    with gone(services):
        refused = await api.post("/uploads", content=b'{"question": "Q", "answer": "A"}\n')
        assert (refused.status_code, refused.json()["type"]) == (503, "store_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        ready = await api.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["store"]["ok"]) == (503, False)
    assert (await api.get("/readyz")).status_code == 200
