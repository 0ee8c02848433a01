"""The whole way of a build's files on S3: uploaded, imported, sealed, published, exported, checked, swept."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import select, update

from rlt_jobs.app import build as build_app
from rlt_jobs.builds.importer import run_import
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.settings import Settings
from rlt_jobs.store.check import check
from rlt_jobs.store.files import Store, StoreUnavailable
from rlt_jobs.store.models import File, Version
from rlt_jobs.store.publish import publish
from rlt_jobs.store.sweep import sweep

on_the_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def on_s3(services: Services, s3_url: str, s3_endpoint: str) -> Services:
    settings = services.settings.model_copy(update={"store": s3_url, "store_endpoint": s3_endpoint})
    return replace(services, settings=settings, store=Store(s3_url, endpoint_url=s3_endpoint))


@pytest_asyncio.fixture(loop_scope="module")
async def api(on_s3: Services) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(on_s3.settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@on_the_loop
async def test_from_an_upload_to_an_export(on_s3: Services, api: httpx.AsyncClient, make_build: Any) -> None:
    lines = b"".join(b'{"question": "Q%d", "answer": "A%d"}\n' % (i, i) for i in range(4))
    upload = (await api.post("/uploads", content=lines)).json()["id"]
    made = await api.post("/builds", json={"dataset": "on-s3", "source": {"upload": upload}, "n": 2})
    assert made.status_code == 202, made.text
    build_id = made.json()["id"]
    await run_import(on_s3, build_id)
    async with on_s3.database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
    for shard_id in ids:
        await work_shard(on_s3, shard_id)
    await publish(on_s3, build_id)

    async with on_s3.database.begin() as session:
        build = await session.get_one(Build, build_id)
        version = (await session.scalars(select(Version).where(Version.build_id == build_id))).one()
        files = (await session.scalars(select(File).where(File.build_id == build_id))).all()
    assert (build.state, version.rows) == ("done", 4)
    assert [line async for line in check(on_s3.database, on_s3.store) if f"builds/{build_id}/" in line] == []
    for file in files:
        assert on_s3.store.size(file.uri) == file.bytes
    exported = await api.get(f"/versions/{version.id}/export")
    assert (exported.status_code, len(exported.text.splitlines())) == (200, 4)
    samples = (await api.get(f"/builds/{build_id}/samples", params={"texts": "true"})).json()["items"]
    assert all(item["explanation"] for item in samples)

    async with on_s3.database.begin() as session:
        for row in (version, build):
            await session.execute(update(type(row)).where(type(row).id == row.id).values(deleted_at=build.created_at))
    told = on_s3.settings.model_copy(update={"retention_days": 0.0})
    lines_of_sweep = [line async for line in sweep(on_s3.database, on_s3.store, told)]
    assert f"build {build_id}: deleted" in lines_of_sweep
    assert [entry.uri for entry in on_s3.store.list(f"builds/{build_id}")] == []


@on_the_loop
async def test_damage_on_s3_is_found(on_s3: Services, make_build: Any) -> None:
    build_id = await make_build(problems=1, n=1)
    async with on_s3.database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == build_id))
    await work_shard(on_s3, shard_id or 0)
    async with on_s3.database.begin() as session:
        file = (await session.scalars(select(File).where(File.build_id == build_id))).one()
    on_s3.store.remove(file.uri)
    found = [line async for line in check(on_s3.database, on_s3.store)]
    assert any(file.uri in line for line in found), found


@on_the_loop
async def test_a_bucket_that_is_away_is_unavailable_and_not_damage(s3_endpoint: str) -> None:
    gone = Store("s3://no-such-bucket/x", endpoint_url=s3_endpoint)

    def write() -> None:
        with gone.create("a") as pending:
            pending.writer.write(b"1")

    for ask in (lambda: gone.open("a"), lambda: gone.size("a"), gone.probe, write):
        with pytest.raises(StoreUnavailable):
            ask()


@on_the_loop
async def test_a_server_that_is_down_is_unavailable(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlt_jobs.store.bucket.ATTEMPTS", 1)  # the back-off is botocore's
    down = Store("s3://bucket/x", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable):
        down.size("a")
    with pytest.raises(StoreUnavailable):
        down.probe()


@on_the_loop
async def test_readiness_tells_whether_the_bucket_answers(api: httpx.AsyncClient, on_s3: Services) -> None:
    ready = await api.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["store"]["detail"]) == (200, on_s3.store.url)
    backend: Any = on_s3.store._backend
    backend._files.rm(backend._bucket, recursive=True)
    away = await api.get("/readyz")
    assert (away.status_code, away.json()["checks"]["store"]["ok"]) == (503, False)


@on_the_loop
async def test_the_usual_variable_names_the_endpoint(
    s3_url: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    store = Store(s3_url)
    with store.create("x") as pending:
        pending.writer.write(b"1")
    store.verify(pending.stored)


def test_a_store_in_use_survives_a_fork(bucket_store: Store) -> None:
    """As Celery's pool does it: s3fs works in a thread, which the child does not have."""
    with bucket_store.create("parent") as pending:
        pending.writer.write(b"1")
    child = os.fork()
    if child == 0:
        try:
            with bucket_store.create("child") as mine:
                mine.writer.write(bucket_store.open("parent").read())
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bucket_store.open("child").read() == b"1"


def test_a_url_without_a_bucket_or_of_another_kind_is_refused(postgres_url: str) -> None:
    with pytest.raises(ValueError, match="no bucket"):
        Store("s3://")
    with pytest.raises(ValueError, match="not gs://"):
        Settings(database_url=postgres_url, store="gs://bucket/x")
