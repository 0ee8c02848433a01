"""Migrations on data: nothing changes on the way forward, and nothing is lost on the way back."""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from plugins.fake_engine import eventually
from plugins.filled import _filling, fill, fill_derived, fill_limits
from plugins.schemas import breaking, execute, schema, snapshot

from rlt_jobs import app, migrate
from rlt_jobs import schema as revisions
from rlt_jobs.database import Database
from rlt_jobs.migrations.keeping import CannotGoBack
from rlt_jobs.schema import State
from rlt_jobs.settings import Settings

FILES = {path.stem: path for path in (Path(__file__).parent / "schemas").glob("*.sql")}
REVISIONS = revisions.order()[1:]
FIRST_RELEASED = "0002"
"""From this on programs of two versions run side by side while one replaces the other."""


def load(url: str, revision: str) -> dict[str, list[dict[str, Any]]]:
    """A database as programs of that revision left it."""
    migrate.upgrade(url, revision)
    execute(url, f"SET session_replication_role = replica; {FILES[revision].read_text()}")  # rows in any order
    return snapshot(url)


def kept(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Tables whose rows are not the same in the columns that they had."""
    changed = []
    for table, rows in before.items():
        columns = set(rows[0]) if rows else set()
        now = [{name: value for name, value in row.items() if name in columns} for row in after.get(table, [])]
        if sorted(map(str, now)) != sorted(map(str, rows)):
            changed.append(table)
    return changed


def test_there_is_data_of_every_revision_before_the_newest() -> None:
    """`python -m plugins.filled` writes it, before the next revision is made."""
    assert set(REVISIONS[:-1]) <= set(FILES)


@pytest.mark.parametrize("revision", sorted(FILES))
def test_data_goes_forward_and_back_unchanged(empty_postgres_url: str, revision: str) -> None:
    before = load(empty_postgres_url, revision)
    assert {"builds", "samples", "scores", "spool", "versions", "problems", "events", "keys"} <= {
        name for name, rows in before.items() if rows
    }
    migrate.upgrade(empty_postgres_url)
    assert migrate.current(empty_postgres_url) == revisions.newest()
    assert kept(before, snapshot(empty_postgres_url)) == []
    migrate.move(empty_postgres_url, revision)  # nothing that is newer was written
    assert migrate.current(empty_postgres_url) == revision
    assert snapshot(empty_postgres_url) == before


@pytest.mark.parametrize("revision", [revision for revision in sorted(FILES) if revision >= FIRST_RELEASED])
def test_this_program_goes_on_with_what_an_older_one_began(
    empty_postgres_url: str, tmp_path: Path, revision: str
) -> None:
    load(empty_postgres_url, revision)
    migrate.upgrade(empty_postgres_url)
    (half,) = execute(
        empty_postgres_url, "SELECT b.id FROM builds b JOIN datasets d ON d.id = dataset_id WHERE d.name = 'half'"
    )[0]
    assert len(execute(empty_postgres_url, f"SELECT 1 FROM samples WHERE build_id = {half}")) < 20

    async def go_on() -> None:
        async with _filling(empty_postgres_url, tmp_path) as world:
            await world.send("POST", f"/builds/{half}/priority", json={"priority": 9})
            await world.finish(half)
            for row in execute(empty_postgres_url, "SELECT id FROM builds WHERE state <> 'cancelled'"):
                if await world.ids(
                    f"SELECT 1 FROM builds WHERE id = {row[0]} AND to_jsonb(builds) ->> 'deleted_at' IS NULL"
                ):
                    for path in ("", "/samples", "/report", "/events"):
                        await world.send("GET", f"/builds/{row[0]}{path}")

    asyncio.run(go_on())
    found = execute(
        empty_postgres_url,
        f"SELECT count(DISTINCT (problem, sample_idx)), count(*), count(file_id) FROM samples WHERE build_id = {half}",
    )
    assert found == [(20, 20, 16)]  # Q1 is refused: 4 samples without a text
    assert execute(empty_postgres_url, f"SELECT state::text FROM builds WHERE id = {half}") == [("done",)]
    assert execute(empty_postgres_url, "SELECT count(*) FROM spool") == [(0,)]


@pytest.mark.slow
def test_what_this_program_writes_survives_one_step_back_and_forward(empty_postgres_url: str, tmp_path: Path) -> None:
    migrate.upgrade(empty_postgres_url)
    asyncio.run(fill(empty_postgres_url, tmp_path))
    asyncio.run(fill_derived(empty_postgres_url, tmp_path))
    fill_limits(empty_postgres_url)
    written = snapshot(empty_postgres_url)
    before = REVISIONS[-2]
    try:
        migrate.move(empty_postgres_url, before)
    except CannotGoBack:
        assert snapshot(empty_postgres_url) == written
        return
    older = snapshot(empty_postgres_url)
    migrate.upgrade(empty_postgres_url)
    assert kept(older, written) == []  # the columns that both have


def test_what_an_older_schema_has_no_place_for_is_named_and_stays(empty_postgres_url: str) -> None:
    before = load(empty_postgres_url, "0002")
    with pytest.raises(CannotGoBack) as refusal:
        migrate.move(empty_postgres_url, "0001")
    for words in (
        "builds from another build (2)",
        "builds deleted and not swept, which would be back (1)",
        "versions deleted and not forgotten, which would be back (1)",
        "uploads that are no JSON lines (1)",
        "open shards of a retry (1)",
        "quotas of owners (1)",
        "exports, which are written again when asked for (1)",
        "numbers of repeated rows (1)",
    ):
        assert words in str(refusal.value)
    with pytest.raises(CannotGoBack, match="builds from another build") as still:
        migrate.move(empty_postgres_url, "0001", accept_loss=True)
    assert "quotas" not in str(still.value)
    assert migrate.current(empty_postgres_url) == "0002"
    assert snapshot(empty_postgres_url) == before


def test_values_go_where_that_is_accepted_and_rows_stay(empty_postgres_url: str) -> None:
    before = load(empty_postgres_url, "0001")
    migrate.upgrade(empty_postgres_url, "0002")
    execute(empty_postgres_url, "INSERT INTO quotas (owner, open_builds) VALUES ('ann', 3)")
    with pytest.raises(CannotGoBack, match=r"^this would lose quotas of owners \(1\)$"):
        migrate.move(empty_postgres_url, "0001")
    migrate.move(empty_postgres_url, "0001", accept_loss=True)
    assert snapshot(empty_postgres_url) == before


def test_limits_of_keys_go_where_that_is_accepted(empty_postgres_url: str) -> None:
    before = load(empty_postgres_url, "0003")
    migrate.upgrade(empty_postgres_url, "0004")
    execute(empty_postgres_url, "UPDATE keys SET rate = '100/minute'")
    with pytest.raises(CannotGoBack, match=r"^this would lose limits of keys \(1\)$"):
        migrate.move(empty_postgres_url, "0003")
    migrate.move(empty_postgres_url, "0003", accept_loss=True)
    assert snapshot(empty_postgres_url) == before


def test_nothing_is_emptied_unless_that_is_accepted(empty_postgres_url: str) -> None:
    before = load(empty_postgres_url, "0001")
    with pytest.raises(CannotGoBack, match=r"builds \(6\), versions \(2\), uploads \(1\), keys \(1\)"):
        migrate.move(empty_postgres_url, "base")
    assert snapshot(empty_postgres_url) == before
    migrate.move(empty_postgres_url, "base", accept_loss=True)
    assert snapshot(empty_postgres_url) == {}


def test_programs_of_the_version_before_can_work_on_each_new_schema(empty_postgres_url: str) -> None:
    migrate.upgrade(empty_postgres_url, FIRST_RELEASED)
    before = schema(empty_postgres_url)
    for revision in REVISIONS[REVISIONS.index(FIRST_RELEASED) + 1 :]:
        migrate.upgrade(empty_postgres_url, revision)
        after = schema(empty_postgres_url)
        assert breaking(before, after) == [], revision
        before = after


CHANGES = {
    "ALTER TABLE builds DROP COLUMN barren": "builds.barren is gone",
    "ALTER TABLE builds RENAME COLUMN worker TO holder": "builds.worker is gone",
    "ALTER TABLE builds ALTER COLUMN n TYPE bigint": "builds.n was integer and is bigint",
    "ALTER TABLE builds ALTER COLUMN priority DROP DEFAULT": "builds.priority had the default '0'::smallint, now None",
    "CREATE UNIQUE INDEX only_one ON builds (owner)": "builds has a new rule, only_one",
    "ALTER TABLE builds ADD CONSTRAINT few CHECK (n < 9)": "builds has a new rule, few",
    "ALTER TABLE shards ALTER COLUMN worker SET NOT NULL": "shards.worker must be given now",
    "ALTER TABLE quotas ADD COLUMN x int NOT NULL": "quotas.x is new and must be given",
    "DROP TABLE canaries": "canaries is gone",
}


def test_what_would_break_them_is_noticed(postgres_url: str) -> None:
    before = schema(postgres_url)
    for change in CHANGES:
        execute(postgres_url, change)
    execute(
        postgres_url, "ALTER TABLE keys ADD COLUMN note text, ADD COLUMN uses int NOT NULL DEFAULT 0"
    )  # these do not
    execute(postgres_url, "CREATE TABLE another (id int PRIMARY KEY)")
    assert sorted(breaking(before, schema(postgres_url))) == sorted(CHANGES.values())


def test_a_migration_waits_for_a_table_without_holding_up_others(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(migrate, "LOCK_MS", 200)
    monkeypatch.setattr(migrate, "PAUSE", 0.3)
    migrate.upgrade(empty_postgres_url, "0002")  # the next one changes `builds`
    with psycopg.connect(empty_postgres_url.replace("+psycopg", "")) as reader:
        reader.execute(b"SELECT count(*) FROM builds")  # its lock lasts as long as the transaction
        working = threading.Thread(target=migrate.upgrade, args=(empty_postgres_url,))
        working.start()
        while working.is_alive() and sum("a table is in use" in record.message for record in caplog.records) < 3:
            # behind a migration that waited for good it would wait for good, too
            execute(empty_postgres_url, "SET statement_timeout = '60s'; SELECT count(*) FROM builds")
            time.sleep(0.1)
        assert working.is_alive()
    working.join()
    assert migrate.current(empty_postgres_url) == revisions.newest()


def stamp(url: str, revision: str | None) -> None:
    """A database that says it has that schema."""
    execute(url, "DELETE FROM alembic_version")
    if revision is not None:
        execute(url, f"INSERT INTO alembic_version VALUES ('{revision}')")


@pytest.mark.parametrize(
    ("revision", "ready", "said"),
    [
        (None, False, "not migrated: run `rlt-jobs migrate`"),
        ("0001", False, f"schema 0001 is older than this program's {revisions.newest()}: run `rlt-jobs migrate`"),
        (revisions.newest(), True, f"schema {revisions.newest()}"),
        ("9999", True, f"schema 9999, newer than this program's {revisions.newest()}"),
    ],
)
async def test_the_api_is_ready_on_its_own_schema_and_on_newer_ones(
    postgres_url: str, tmp_path: Path, revision: str | None, ready: bool, said: str
) -> None:
    stamp(postgres_url, revision)
    made = app.build(Settings(database_url=postgres_url, store=str(tmp_path)))
    async with (
        made.router.lifespan_context(made),
        httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://jobs") as http,
    ):
        reply = await http.get("/readyz")
    assert reply.status_code == (200 if ready else 503)
    assert reply.json()["checks"]["database"] == {"ok": ready, "detail": said}


async def test_workers_and_relays_wait_for_the_migration(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = 0
    look = revisions.revision_of

    async def counted(database: Database) -> str | None:
        nonlocal looks
        looks += 1
        return await look(database)

    monkeypatch.setattr(revisions, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(revisions, "revision_of", counted)
    stamp(postgres_url, "0001")
    database = Database(postgres_url, name="test", pool=1)
    try:
        waiting = asyncio.create_task(revisions.until_current(database))
        await eventually(lambda: looks > 5 or waiting.done())
        assert not waiting.done()
        stamp(postgres_url, revisions.newest())
        await asyncio.wait_for(waiting, 60)
        stop = asyncio.Event()
        stop.set()
        await revisions.until_current(database, stop)
    finally:
        await database.close()
    assert [record.message for record in caplog.records if "0001" in record.message] == [
        f"waiting: schema 0001 is older than this program's {revisions.newest()}: run `rlt-jobs migrate`"
    ]


def command(url: str, *args: str) -> int:
    asked: argparse.Namespace = migrate.parser("rlt-jobs migrate").parse_args(args)
    return migrate.main(url, asked, "rlt-jobs migrate")


def test_the_command_tells_where_a_database_stands(empty_postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    newest = revisions.newest()
    assert command(empty_postgres_url, "--check") == 1
    assert capsys.readouterr().out == f"schema None, this program's is {newest}\n"
    assert command(empty_postgres_url, "--to", "0001") == 0
    assert command(empty_postgres_url, "--check") == 1
    capsys.readouterr()

    assert command(empty_postgres_url, "--dry-run", "--to", "0002") == 0
    printed = capsys.readouterr().out
    assert "CREATE TABLE quotas" in printed
    assert migrate.current(empty_postgres_url) == "0001"  # only printed
    execute(empty_postgres_url, printed)
    assert migrate.current(empty_postgres_url) == "0002"  # and what was printed does it

    assert command(empty_postgres_url) == 0
    assert command(empty_postgres_url, "--check") == 0
    assert command(empty_postgres_url, "--to", "1000") == 1
    assert f"there is no revision 1000: {', '.join(revisions.order())}" in capsys.readouterr().err


def test_a_program_of_the_version_before_leaves_a_newer_schema_alone(
    postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when an update is taken back."""
    stamp(postgres_url, "9999")
    assert revisions.state("9999") is State.newer
    assert command(postgres_url) == 0
    assert command(postgres_url, "--check") == 0
    assert command(postgres_url, "--to", "0001") == 1
    assert "newer than this program" in capsys.readouterr().err
    assert execute(postgres_url, "SELECT version_num FROM alembic_version") == [("9999",)]
