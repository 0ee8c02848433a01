"""The check: each kind of damage, made on purpose, is found, and a whole store gives no finding."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from sqlalchemy import func, select, text

from rlt_jobs import admin
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.store.check import check
from rlt_jobs.store.files import Store
from rlt_jobs.store.models import ExportFile, File, Upload, Version
from rlt_jobs.store.publish import publish
from rlt_jobs.store.traces import open_writer

pytestmark = pytest.mark.asyncio(loop_scope="module")

Damage = Callable[..., Awaitable[list[str]]]


async def findings(services: Services) -> list[str]:
    return [line async for line in check(services.database, services.store)]


@pytest.fixture(scope="module")
def kept() -> list[int]:
    """The build that the tests of this module share."""
    return []


@pytest_asyncio.fixture(loop_scope="module")
async def done(services: Services, make_build: Any, kept: list[int]) -> int:
    """A finished build of 3 problems × 2 samples, whole again after each test."""
    if kept:
        return kept[0]
    build_id: int = await make_build(problems=3, n=2, shard_samples=2)
    async with services.database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
    for shard_id in ids:
        await work_shard(services, shard_id)
    await publish(services, build_id)
    kept.append(build_id)
    return build_id


@pytest.fixture
def damaged(services: Services, done: int) -> Damage:
    """Run SQL, look what the check finds, and take it back."""

    async def run(*statements: str) -> list[str]:
        async with services.database.engine.connect() as connection:
            tables = ("samples", "scores", "shards", "problems", "files", "versions", "spool")
            for table in tables:
                await connection.execute(text(f"CREATE TEMP TABLE kept_{table} AS SELECT * FROM {table}"))
            await connection.commit()
            for statement in statements:
                await connection.execute(text(statement.replace(":build", str(done))))
            await connection.commit()
            found = await findings(services)
            await connection.execute(text("SET session_replication_role = replica"))
            for table in tables:
                await connection.execute(text(f"DELETE FROM {table}"))
                await connection.execute(
                    text(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM kept_{table}")
                )
                await connection.execute(text(f"DROP TABLE kept_{table}"))
            await connection.execute(text("SET session_replication_role = origin"))
            await connection.commit()
        return found

    return run


SAMPLE = "build_id = :build AND problem = 1 AND sample_idx = 1"
DAMAGES = {
    "another's row": (f"UPDATE samples SET row = 0 WHERE {SAMPLE}", "row 0 is not sample 1.1"),
    "no such row": (f"UPDATE samples SET row = 99 WHERE {SAMPLE}", "sample 1.1 points at no row"),
    "no row": (f"UPDATE samples SET row = NULL WHERE {SAMPLE}", "sample 1.1 points at no row"),
    "no such file": (f"UPDATE samples SET file_id = 999999 WHERE {SAMPLE}", "sample 1.1 points at no row"),
    "texts lost": (
        f"UPDATE samples SET file_id = NULL, row = NULL WHERE {SAMPLE}",
        "sample 1.1 is complete and has no",
    ),
    "sample lost": (f"DELETE FROM samples WHERE {SAMPLE}", "5 samples instead of 3 × 2"),
    "score without sample": (f"DELETE FROM samples WHERE {SAMPLE}", "has a score of sample 1.1, which is not there"),
    "outside": (f"UPDATE samples SET problem = 7 WHERE {SAMPLE}", "sample 7.1 is outside its 3 × 2 samples"),
    "counter": ("UPDATE shards SET complete = complete + 1 WHERE build_id = :build", "complete, and there are 6"),
    "tokens": ("UPDATE shards SET completion_tokens = 0 WHERE build_id = :build", "count 0 completion_tokens, and"),
    "score counter": ("UPDATE shards SET scored = scored + 1 WHERE build_id = :build", "scored, and there are 6"),
    "score lost": (f"DELETE FROM scores WHERE {SAMPLE}", "count 6 scored, and there are 5"),
    "problem lost": ("DELETE FROM problems WHERE build_id = :build AND idx = 1", "it has 2 problems that are not"),
    "problems renumbered": (
        "UPDATE problems SET idx = 9 WHERE build_id = :build AND idx = 1",
        "it has 3 problems that",
    ),
    "range left out": ("UPDATE shards SET hi = hi - 1 WHERE build_id = :build AND hi = 3", "between 2 and 3"),
    "range twice": ("UPDATE shards SET hi = hi + 1 WHERE build_id = :build AND hi = 1", "between 2 and 1"),
    "shard open": ("UPDATE shards SET state = 'ready' WHERE build_id = :build AND lo = 0", "is ready"),
    "not sealed": (
        "INSERT INTO spool SELECT build_id, lo, 0, id, 'x' FROM shards WHERE build_id = :build AND lo = 0",
        "the spool has texts of sample 0.0, which is sealed",
    ),
    "spool of a done build": (
        "INSERT INTO spool SELECT build_id, lo, 0, id, 'x' FROM shards WHERE build_id = :build AND lo = 0",
        "done and 1 texts are not sealed",
    ),
    "checksum": ("UPDATE files SET sha256 = 'x' WHERE build_id = :build", "not what was written"),
    "rows of a file": (
        "UPDATE files SET rows = rows + 1 WHERE build_id = :build AND kind = 'compact'",
        "6 rows instead of 7",
    ),
    "manifest": ("UPDATE versions SET manifest_sha256 = 'x' WHERE build_id = :build", "not what was written"),
    "rows of a version": (
        "UPDATE versions SET rows = 9 WHERE build_id = :build",
        "its manifest has 3 rows instead of 9",
    ),
    "counts of a version": (
        "UPDATE versions SET counts = jsonb_set(counts, '{complete}', '4') WHERE build_id = :build",
        "its counts are of 4 samples instead of 3 × 2",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
async def test_damage_in_the_database_is_found(damaged: Damage, kind: str) -> None:
    statement, words = DAMAGES[kind]
    found = await damaged(statement)
    assert any(words in finding for finding in found), found


async def test_a_whole_store_gives_no_finding(services: Services, done: int) -> None:
    """Also after all that was done above."""
    assert done
    assert await findings(services) == []


async def test_rows_of_builds_that_do_not_exist_are_found(damaged: Damage) -> None:
    found = await damaged(
        "INSERT INTO spool SELECT 999999, 0, 0, id, 'x' FROM shards WHERE build_id = :build AND lo = 0",
    )
    assert found == ["build 999999 does not exist and has rows in spool"]


async def file_of(services: Services, build_id: int) -> File:
    async with services.database.begin() as session:
        compact = (File.build_id == build_id, File.kind == "compact")
        return (await session.scalars(select(File).where(*compact))).one()


def put(store: Store, uri: str, data: bytes) -> None:
    with store.create(uri) as pending:
        pending.writer.write(data)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
async def test_a_damaged_file_is_found(services: Services, done: int, damage: str) -> None:
    store, uri = services.store, (await file_of(services, done)).uri
    whole = store.open(uri).read()
    store.remove(uri)
    if damage != "missing":
        put(store, uri, whole[:-1] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    found = await findings(services)
    store.remove(uri)
    put(store, uri, whole)
    assert any(uri in finding for finding in found), found
    assert await findings(services) == []


async def test_a_manifest_that_names_another_row_is_found(services: Services, done: int) -> None:
    """Its checksum is right: it was written so."""
    async with services.database.begin() as session:
        version = (await session.scalars(select(Version).where(Version.build_id == done))).one()
        rows = pq.read_table(services.store.open(version.manifest_uri))
        changed = rows.set_column(
            rows.schema.get_field_index("row"), rows.schema.field("row"), pa.array([0] * 3, pa.int32())
        )
        uri = f"datasets/{uuid.uuid4().hex}.parquet"
        with services.store.create(uri) as pending, open_writer(pending.writer, changed.schema) as writer:
            writer.write_table(changed)
        kept = (version.manifest_uri, version.manifest_bytes, version.manifest_sha256)
        stored = pending.stored
        version.manifest_uri, version.manifest_bytes, version.manifest_sha256 = stored.uri, stored.bytes, stored.sha256
    found = await findings(services)
    assert len(found) == 2, found
    assert all(f"version {version.id}:" in line and "row 0 is not sample" in line for line in found)
    async with services.database.begin() as session:
        again = await session.get_one(Version, version.id)
        again.manifest_uri, again.manifest_bytes, again.manifest_sha256 = kept


async def test_a_version_that_names_a_file_it_does_not_hold_is_found(
    damaged: Damage, services: Services, done: int
) -> None:
    version = select(Version.id).where(Version.build_id == done)
    async with services.database.begin() as session:
        version_id = await session.scalar(version)
        await session.execute(text(f"DELETE FROM version_files WHERE version_id = {version_id}"))
    found = await findings(services)
    file = await file_of(services, done)
    async with services.database.begin() as session:
        await session.execute(text(f"INSERT INTO version_files VALUES ({version_id}, {file.id})"))
    assert found == [f"version {version_id}: its manifest names file {file.id}, which the version does not hold"]


async def test_exports_and_uploads_are_checked_too(services: Services, done: int) -> None:
    async with services.database.begin() as session:
        version_id = await session.scalar(select(Version.id).where(Version.build_id == done))
        lost = {"bytes": 1, "sha256": "x"}
        session.add(Upload(id=uuid.uuid4(), owner="ann", uri="uploads/lost", **lost))
        session.add(ExportFile(version_id=version_id, format="jsonl", shape="raw", uri="exports/lost", **lost))
    found = await findings(services)
    assert sorted(line.partition(":")[0] for line in found) == ["exports/lost", "uploads/lost"]
    async with services.database.begin() as session:
        await session.execute(text("DELETE FROM uploads WHERE uri = 'uploads/lost'"))
        await session.execute(text("DELETE FROM exports WHERE uri = 'exports/lost'"))


async def test_a_build_that_runs_is_whole_at_every_moment(
    services: Services, make_build: Any, claim: Any, outcome: Any
) -> None:
    build_id = await make_build(problems=2, n=2)
    assert await findings(services) == []
    async with services.database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == build_id))
    lease = await claim(shard_id)
    async with services.database.begin() as session:
        await flush(session, lease, [outcome(0, 1), outcome(1, 0)], scorer_id=None, seconds=1)
    assert await findings(services) == []
    async with services.database.begin() as session:
        await session.execute(text(f"DELETE FROM spool WHERE build_id = {build_id} AND problem = 0"))
    assert await findings(services) == [f"build {build_id}: sample 0.1 is complete and has no texts"]
    async with services.database.begin() as session:
        (await session.get_one(Build, build_id)).deleted_at = func.now()
    assert await findings(services) == []


async def test_the_command_tells_by_its_exit_code(
    services: Services, done: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await admin.check_store(services.settings) == 0
    assert capsys.readouterr().out == "the store is whole\n"
    copy = Store(shutil.copytree(services.store.url, tmp_path / "copy"))
    uri = (await file_of(services, done)).uri
    copy.remove(uri)
    assert await admin.check_store(services.settings.model_copy(update={"store": copy.url})) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(lines) - 1} things are wrong"
    assert any(uri in line for line in lines)
