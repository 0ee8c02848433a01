"""Deletion: hidden at once, refused while something reads, gone after the retention; in batches, and gone on with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import func, select, text, update

from rlt_jobs.app import build as build_app
from rlt_jobs.builds.models import Build, Event, Problem, Sample, Score, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.settings import Settings
from rlt_jobs.store import sweep as sweeping
from rlt_jobs.store.check import check
from rlt_jobs.store.models import File, Spool, Upload, Version, VersionFile
from rlt_jobs.store.publish import publish
from rlt_jobs.store.sweep import sweep

pytestmark = pytest.mark.asyncio(loop_scope="module")

Published = Callable[..., Awaitable[int]]
Swept = Callable[..., Awaitable[list[str]]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def api(module_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(module_settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@pytest.fixture
def published(services: Services, make_build: Any) -> Published:
    """A finished build of 3 problems × 2 samples; its id."""

    async def make(**options: Any) -> int:
        build_id: int = await make_build(owner="local", shard_samples=2, **options)
        async with services.database.begin() as session:
            ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
        for shard_id in ids:
            await work_shard(services, shard_id)
        await publish(services, build_id)
        return build_id

    return make


@pytest.fixture
def swept(services: Services) -> Swept:
    async def run(**settings: Any) -> list[str]:
        told = services.settings.model_copy(update={"retention_days": 0.0, **settings})
        return [line async for line in sweep(services.database, services.store, told)]

    return run


async def version_of(services: Services, build_id: int) -> Version:
    async with services.database.begin() as session:
        return (await session.scalars(select(Version).where(Version.build_id == build_id))).one()


async def rows(services: Services, build_id: int) -> dict[str, int]:
    """How many rows each table has of a build."""
    async with services.database.begin() as session:
        tables = (Problem, Shard, Sample, Score, Spool, Event, File)
        counts = {
            table.__tablename__: await session.scalar(select(func.count()).where(table.build_id == build_id)) or 0
            for table in tables
        }
        return counts | {"builds": int(await session.get(Build, build_id) is not None)}


async def test_a_deleted_build_is_hidden_and_later_gone(
    api: httpx.AsyncClient, services: Services, published: Published, swept: Swept
) -> None:
    build_id = await published()
    version = await version_of(services, build_id)
    refused = await api.delete(f"/builds/{build_id}")
    assert (refused.status_code, refused.json()["type"]) == (409, "in_use")
    assert f"version {version.id} (number 1 of" in refused.json()["detail"]
    assert (await api.delete(f"/versions/{version.id}")).status_code == 204
    assert (await api.delete(f"/builds/{build_id}")).status_code == 204

    hidden = ("", "/events", "/samples")
    assert [(await api.get(f"/builds/{build_id}{path}")).status_code for path in hidden] == [404] * 3
    for action in ("pause", "resume", "cancel"):
        assert (await api.post(f"/builds/{build_id}/{action}")).status_code == 404
    assert build_id not in [item["id"] for item in (await api.get("/builds")).json()["items"]]
    assert (await api.get(f"/versions/{version.id}")).status_code == 404
    assert (await api.get(f"/versions/{version.id}/export")).status_code == 404
    for path in (f"/builds/{build_id}", f"/versions/{version.id}"):
        assert (await api.delete(path)).status_code == 404

    kept = [line for line in await swept(retention_days=7.0) if str(build_id) in line]
    assert kept == []
    assert (await rows(services, build_id))["samples"] == 6
    lines = await swept()
    assert {f"version {version.id}: deleted", f"build {build_id}: deleted"} <= set(lines)
    assert not any((await rows(services, build_id)).values())
    assert not services.store.exists(version.manifest_uri)
    assert list(services.store.list(f"builds/{build_id}")) == []
    assert [line async for line in check(services.database, services.store) if "build" in line] == []
    assert [line for line in await swept() if f" {build_id}:" in line] == []


async def test_the_number_of_a_deleted_version_is_not_used_again(
    api: httpx.AsyncClient, services: Services, published: Published, swept: Swept
) -> None:
    build_id = await published()
    version = await version_of(services, build_id)
    await api.delete(f"/versions/{version.id}")
    await swept()
    async with services.database.begin() as session:
        kept = await session.get_one(Version, version.id)
        assert (kept.manifest_uri, kept.number) == ("", 1)
        files = select(func.count()).where(VersionFile.version_id == version.id)
        assert await session.scalar(files) == 0
    assert (await api.get(f"/builds/{build_id}/samples")).status_code == 200


async def test_a_build_that_runs_is_not_deleted(api: httpx.AsyncClient, make_build: Any) -> None:
    build_id = await make_build(owner="local")
    refused = await api.delete(f"/builds/{build_id}")
    assert (refused.status_code, refused.json()["type"]) == (409, "wrong_state")
    assert "cancel it first" in refused.json()["detail"]
    await api.post(f"/builds/{build_id}/cancel")
    assert (await api.delete(f"/builds/{build_id}")).status_code == 204


async def test_a_build_whose_samples_another_reads_is_not_deleted(
    api: httpx.AsyncClient, services: Services, published: Published, swept: Swept
) -> None:
    build_id = await published()
    version = await version_of(services, build_id)
    made = await api.post(f"/versions/{version.id}/rerank", json={"selection": {"mode": "all"}})
    assert made.status_code == 202, made.text
    rerank = made.json()["id"]
    await publish(services, rerank)
    derived = await version_of(services, rerank)
    assert (await api.delete(f"/versions/{version.id}")).status_code == 204  # a derived version reads nothing of it
    refused = await api.delete(f"/builds/{build_id}")
    assert refused.status_code == 409
    assert f"version {derived.id}" in refused.json()["detail"]
    assert f"build {rerank} (rerank)" in refused.json()["detail"]
    await swept()
    assert (await api.get(f"/versions/{derived.id}/export")).status_code == 200
    assert (await api.delete(f"/builds/{rerank}")).status_code == 409
    for path in (f"/versions/{derived.id}", f"/builds/{rerank}", f"/builds/{build_id}"):
        assert (await api.delete(path)).status_code == 204
    await swept()
    for gone in (build_id, rerank):
        assert not any((await rows(services, gone)).values())


async def test_what_lives_on_a_deleted_build_keeps_its_rows(
    api: httpx.AsyncClient, services: Services, published: Published, swept: Swept
) -> None:
    """A version that was published at the very moment of the deletion."""
    build_id = await published()
    version = await version_of(services, build_id)
    async with services.database.begin() as session:
        await session.execute(update(Build).where(Build.id == build_id).values(deleted_at=func.now()))
    assert f"build {build_id}: deleted" not in await swept()
    assert (await api.get(f"/versions/{version.id}/export")).status_code == 200


async def test_scores_go_with_the_build_that_made_them(
    api: httpx.AsyncClient, services: Services, published: Published, swept: Swept
) -> None:
    """Unless another has the same scorer."""
    build_id = await published()
    async with services.database.begin() as session:
        data = await session.get_one(Build, build_id)
        values = {name: getattr(data, name) for name in ("dataset_id", "owner", "state", "n", "spec", "spec_hash")}
        values |= {"request_hash": b"", "problems": data.problems, "of_build_id": build_id, "kind": "rescore"}
        twin = await session.scalar(
            text(
                "INSERT INTO scorers (hash, student, student_revision, format_name, format_hash, student_temperature) "
                "VALUES (gen_random_uuid()::text::bytea, 's', 'r', 'f', 'h', 1) RETURNING id"
            )
        )
        same, own = Build(**values, scorer_id=data.scorer_id), Build(**values, scorer_id=twin)
        session.add_all([same, own])
        await session.execute(
            text(
                "INSERT INTO scores (build_id, problem, sample_idx, scorer_id, status) "
                "SELECT build_id, problem, sample_idx, :twin, status FROM scores WHERE build_id = :build"
            ),
            {"twin": twin, "build": build_id},
        )
    assert (await rows(services, build_id))["scores"] == 12
    assert (await api.delete(f"/builds/{same.id}")).status_code == 204
    await swept()
    assert (await rows(services, build_id))["scores"] == 12
    assert (await api.delete(f"/builds/{own.id}")).status_code == 204
    await swept()
    assert (await rows(services, build_id))["scores"] == 6


async def test_a_sweep_that_is_killed_is_gone_on_with(
    api: httpx.AsyncClient, services: Services, published: Published, swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await published(problems=10)
    version = await version_of(services, build_id)
    for path in (f"/versions/{version.id}", f"/builds/{build_id}"):
        assert (await api.delete(path)).status_code == 204
    monkeypatch.setattr(sweeping, "ROWS", 4)  # two problems a transaction
    change = sweeping._Sweep._change
    done = 0

    async def killed(self: Any, *statements: Any) -> int:
        nonlocal done
        done += 1
        if done == 9:
            raise KeyError("SIGKILL")
        return await change(self, *statements)

    with monkeypatch.context() as patched:
        patched.setattr(sweeping._Sweep, "_change", killed)
        with pytest.raises(KeyError):
            await swept()
    left = await rows(services, build_id)
    assert 0 < left["samples"] < 20
    assert left["builds"] == 1
    assert f"build {build_id}: deleted" in await swept()
    assert not any((await rows(services, build_id)).values())


async def test_uploads_are_deleted_unless_a_build_imports_them(
    api: httpx.AsyncClient, services: Services, swept: Swept
) -> None:
    body = b'{"question": "Q", "answer": "A"}\n'
    upload = (await api.post("/uploads", content=body)).json()["id"]
    made = await api.post("/builds", json={"dataset": "uploads", "source": {"upload": upload}, "n": 1})
    assert made.status_code == 202, made.text
    refused = await api.delete(f"/uploads/{upload}")
    assert (refused.status_code, f"build {made.json()['id']}" in refused.json()["detail"]) == (409, True)
    await api.post(f"/builds/{made.json()['id']}/cancel")
    assert (await api.delete(f"/uploads/{upload}")).status_code == 204
    assert (await api.delete(f"/uploads/{upload}")).status_code == 404
    again = await api.post("/builds", json={"dataset": "uploads", "source": {"upload": upload}, "n": 1})
    assert again.status_code == 422
    async with services.database.begin() as session:
        uri = (await session.scalars(select(Upload.uri).where(Upload.id == upload))).one()
    assert services.store.exists(uri)
    assert f"upload {upload}: deleted" in await swept()
    assert not services.store.exists(uri)
    unused = (await api.post("/uploads", content=body)).json()["id"]
    assert f"upload {unused}: never used, hidden now" in await swept(unused_upload_days=0.0)
    assert f"upload {unused}: deleted" in await swept()
    async with services.database.begin() as session:
        assert await session.get(Upload, upload) is not None  # its build still tells what it was made of
        assert await session.get(Upload, unused) is None


async def test_the_key_of_a_deleted_build_makes_a_new_one(api: httpx.AsyncClient) -> None:
    body = {"dataset": "again", "problems": [{"question": "Q", "answer": "A"}], "n": 1}
    headers = {"idempotency-key": "k-deleted"}
    first = (await api.post("/builds", json=body, headers=headers)).json()["id"]
    await api.post(f"/builds/{first}/cancel")
    assert (await api.delete(f"/builds/{first}")).status_code == 204
    assert (await api.post("/builds", json=body, headers=headers)).json()["id"] != first
    names = [item["name"] for item in (await api.get("/datasets")).json()["items"]]
    assert "again" in names


async def test_a_data_set_without_anything_living_is_not_listed(api: httpx.AsyncClient) -> None:
    body = {"dataset": "empty-soon", "problems": [{"question": "Q", "answer": "A"}], "n": 1}
    made = (await api.post("/builds", json=body)).json()["id"]
    await api.post(f"/builds/{made}/cancel")
    await api.delete(f"/builds/{made}")
    names = [item["name"] for item in (await api.get("/datasets")).json()["items"]]
    assert "empty-soon" not in names
