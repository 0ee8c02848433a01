"""The sweep: files that nobody reads go, after their grace; everything that something reads stays."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from rlt_jobs import admin, migrate, relay
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.celery_app import make_celery
from rlt_jobs.relay import Relay
from rlt_jobs.store.check import check
from rlt_jobs.store.files import Store
from rlt_jobs.store.models import ExportFile, File, Version
from rlt_jobs.store.publish import publish
from rlt_jobs.store.sweep import LOCK, sweep

pytestmark = pytest.mark.asyncio(loop_scope="module")

Swept = Callable[..., Awaitable[list[str]]]
HOURS = 3600


@pytest.fixture
def swept(services: Services) -> Swept:
    async def run(*, dry_run: bool = False, store: Store | None = None, **settings: Any) -> list[str]:
        told = services.settings.model_copy(update=settings)
        found = sweep(services.database, store or services.store, told, dry_run=dry_run)
        return [line async for line in found]

    return run


async def published(services: Services, make_build: Any) -> int:
    build_id: int = await make_build(problems=3, n=2, shard_samples=2)
    async with services.database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
    for shard_id in ids:
        await work_shard(services, shard_id)
    await publish(services, build_id)
    return build_id


def write(store: Store, uri: str, *, hours: float) -> None:
    """A file that was written so long ago."""
    with store.create(uri) as pending:
        pending.writer.write(b"x")
    then = time.time() - hours * HOURS
    os.utime(Path(store.url) / uri, (then, then))


async def kinds(services: Services, build_id: int) -> dict[str, int]:
    async with services.database.begin() as session:
        counts = select(File.kind, func.count()).where(File.build_id == build_id).group_by(File.kind)
        return {row[0]: row[1] for row in await session.execute(counts)}


async def test_files_without_a_row_go_after_their_grace(services: Services, make_build: Any, swept: Swept) -> None:
    build_id = await published(services, make_build)
    names = ("builds/1/shards/lost.parquet", "datasets/1/lost.parquet", "uploads/.part-of-one.part", "stray")
    for name in names:
        write(services.store, name, hours=25)
    write(services.store, "builds/1/shards/young.parquet", hours=23)
    would = await swept(dry_run=True)
    assert sorted(would) == sorted(f"{name}: no row names it" for name in names)
    assert all(services.store.exists(name) for name in names)
    assert sorted(await swept()) == sorted(would)
    assert not any(services.store.exists(name) for name in names)
    assert services.store.exists("builds/1/shards/young.parquet")
    assert await swept() == []
    services.store.remove("builds/1/shards/young.parquet")
    version = await version_of(services, build_id)
    assert services.store.exists(version.manifest_uri)


async def version_of(services: Services, build_id: int) -> Version:
    async with services.database.begin() as session:
        return (await session.scalars(select(Version).where(Version.build_id == build_id))).one()


async def test_what_compaction_superseded_goes_and_what_versions_read_stays(
    services: Services, make_build: Any, swept: Swept
) -> None:
    build_id = await published(services, make_build)
    before = await kinds(services, build_id)
    assert (before["shard"], before["compact"]) == (3, 1)
    assert await swept() == []  # it ended just now: a reader may have asked for the places before
    async with services.database.begin() as session:
        ended = func.now() - func.make_interval(0, 0, 0, 0, 25)
        await session.execute(update(Build).where(Build.id == build_id).values(finished_at=ended))
    lines = await swept(dry_run=True)
    assert len(lines) == 3
    assert await kinds(services, build_id) == before
    assert await swept() == lines
    assert await kinds(services, build_id) == {"compact": 1}
    left = [entry.uri for entry in services.store.list(f"builds/{build_id}")]
    assert [uri for uri in left if "/shards/" in uri] == []
    assert [line async for line in check(services.database, services.store)] == []


async def test_files_of_a_build_that_runs_are_left_alone(services: Services, make_build: Any, swept: Swept) -> None:
    build_id = await make_build(problems=2, n=1, shard_samples=1)
    async with services.database.begin() as session:
        first = await session.scalar(select(func.min(Shard.id)).where(Shard.build_id == build_id))
    await work_shard(services, first or 0)
    assert [line for line in await swept(orphan_hours=0.0) if f"builds/{build_id}/" in line] == []
    assert (await kinds(services, build_id))["shard"] >= 1


async def test_exports_nobody_asks_for_go(services: Services, make_build: Any, swept: Swept) -> None:
    version = await version_of(services, await published(services, make_build))
    for days, shape in ((31, "raw"), (29, "messages")):
        uri = f"exports/{version.id}-{shape}.jsonl"
        with services.store.create(uri) as pending:
            pending.writer.write(b"x")
        stored = {"uri": uri, "bytes": 1, "sha256": pending.stored.sha256}
        asked_at = func.now() - func.make_interval(0, 0, 0, days)
        async with services.database.begin() as session:
            session.add(ExportFile(version_id=version.id, format="jsonl", shape=shape, asked_at=asked_at, **stored))
    gone, kept = (f"exports/{version.id}-{shape}.jsonl" for shape in ("raw", "messages"))
    assert await swept() == [f"{gone}: an export that nobody asked for"]
    assert (services.store.exists(gone), services.store.exists(kept)) == (False, True)


async def test_an_empty_database_beside_a_full_store_costs_no_file(
    services: Services, swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    write(store, "builds/1/shards/x.parquet", hours=25)

    async def names_none(_self: object) -> bool:
        return False

    monkeypatch.setattr("rlt_jobs.store.sweep._Sweep._names_any", names_none)
    assert [line for line in await swept(store=store) if "no row" in line] == []
    assert store.exists("builds/1/shards/x.parquet")


async def test_one_sweep_at_a_time(services: Services, swept: Swept) -> None:
    write(services.store, "stray", hours=25)
    async with services.database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        assert await connection.scalar(select(func.pg_try_advisory_lock(LOCK)))
        assert await swept() == []
        await connection.execute(select(func.pg_advisory_unlock(LOCK)))
    both = await asyncio.gather(swept(), swept())
    assert sorted(line for lines in both for line in lines) == ["stray: no row names it"]
    assert await swept() == []  # the lock was let go


async def test_no_two_kinds_of_work_wait_for_one_lock() -> None:
    """A sweep of an hour would else keep the relay from waking workers for builds that cannot go on."""
    locks = [LOCK, migrate.LOCK, relay.REAP_LOCK, relay.CANARY_LOCK, relay.PROBE_LOCK]
    assert len(set(locks)) == len(locks)


async def test_the_relay_sweeps(services: Services) -> None:
    write(services.store, "stray", hours=25)
    await Relay(services.settings, services.database, make_celery(services.settings)).sweep()
    assert not services.store.exists("stray")


async def test_uploads_to_a_bucket_that_nobody_completed_are_ended(bucket_store: Store, swept: Swept) -> None:
    backend: Any = bucket_store._backend
    backend._files.call_s3("create_multipart_upload", Bucket=backend._bucket, Key=f"{backend._prefix}/uploads/half")
    backend._files.call_s3("create_multipart_upload", Bucket=backend._bucket, Key="another/program's")
    (entry,) = bucket_store.unfinished()
    assert await swept(store=bucket_store, orphan_hours=24.0 * 365 * 100) == []  # moto dates it to 2010
    line = f"{entry.uri}: an upload that nobody completed"
    assert await swept(store=bucket_store, dry_run=True) == [line]
    assert await swept(store=bucket_store) == [line]
    assert list(bucket_store.unfinished()) == []
    assert len(backend._files.list_multipart_uploads(backend._bucket)) == 1


async def test_the_command_says_first_and_then_does(services: Services, capsys: pytest.CaptureFixture[str]) -> None:
    write(services.store, "stray", hours=25)
    assert await admin.sweep_store(services.settings, dry_run=True) == 0
    assert capsys.readouterr().out == "would remove stray: no row names it\n"
    assert services.store.exists("stray")
    assert await admin.sweep_store(services.settings, dry_run=False) == 0
    assert capsys.readouterr().out == "removed stray: no row names it\n"
    assert not services.store.exists("stray")
