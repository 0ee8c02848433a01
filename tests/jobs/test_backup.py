"""Backups of a database and a store, and what is brought back from them."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

import psycopg
import pytest
from plugins.backups import backup, names, restore
from plugins.schemas import execute, snapshot

from rlt_jobs import migrate

DATA = (Path(__file__).parent / "schemas" / "0002.sql").read_text()
OPEN = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rlt%'"


@pytest.fixture
def filled(postgres_url: str) -> str:
    if not execute(postgres_url, "SELECT 1 FROM builds LIMIT 1"):
        execute(postgres_url, f"SET session_replication_role = replica; {DATA}")
    return postgres_url


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    for index in range(3):
        write(folder, f"builds/1/shards/{index}.parquet", f"file {index}")
    write(folder, "builds/1/shards/.3.parquet.0.part", "half a f")
    return folder


def write(store: Path, name: str, text: str) -> None:
    path = store / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_backup_holds_the_whole_files_and_every_row(
    filled: str, empty_postgres_url: str, store: Path, tmp_path: Path
) -> None:
    done = backup(filled, store, tmp_path / "backups")
    assert done.returncode == 0, done.stderr
    (name,) = names(tmp_path / "backups")
    saved = files(tmp_path / "backups" / name / "files")
    assert saved == {f"builds/1/shards/{index}.parquet": f"file {index}" for index in range(3)}
    assert "3 files" in done.stdout

    again = tmp_path / "again"
    again.mkdir()
    back = restore(empty_postgres_url, again, tmp_path / "backups")
    assert back.returncode == 0, back.stderr
    assert back.stdout == f"restore: {name} is back; now: rlt-jobs migrate, rlt-jobs check\n"
    assert snapshot(empty_postgres_url) == snapshot(filled)
    assert migrate.current(empty_postgres_url) == migrate.current(filled)
    assert files(again) == saved
    old = int((store / "builds/1/shards/0.parquet").stat().st_mtime)  # whole seconds are kept
    assert int((again / "builds/1/shards/0.parquet").stat().st_mtime) == old  # the sweep goes by age


def test_ids_that_may_have_been_given_out_are_not_given_again(
    filled: str, empty_postgres_url: str, store: Path, tmp_path: Path
) -> None:
    backup(filled, store, tmp_path / "backups")
    restore(empty_postgres_url, store, tmp_path / "backups")
    for table in ("builds", "datasets", "versions"):
        (highest,) = execute(empty_postgres_url, f"SELECT max(id) FROM {table}")[0]
        (following,) = execute(empty_postgres_url, f"SELECT nextval(pg_get_serial_sequence('{table}', 'id'))")[0]
        assert following > highest + 10_000


def test_the_next_backup_shares_what_has_not_changed_and_forgets_what_is_gone(
    filled: str, store: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    for index in range(3):
        done = backup(filled, store, backups, keep=2)
        assert done.returncode == 0, done.stderr
        write(store, f"builds/2/{index}.parquet", "new")
        if index == 0:
            (store / "builds/1/shards/0.parquet").unlink()
        time.sleep(1.1)  # names are seconds
    first, second = names(backups)  # of three
    kept = "files/builds/1/shards/1.parquet"
    assert (backups / first / kept).stat().st_ino == (backups / second / kept).stat().st_ino
    assert sorted(files(backups / second / "files")) == [
        "builds/1/shards/1.parquet",
        "builds/1/shards/2.parquet",
        "builds/2/0.parquet",
        "builds/2/1.parquet",
    ]


def test_a_store_that_is_not_mounted_is_no_empty_store(filled: str, store: Path, tmp_path: Path) -> None:
    backups, nothing = tmp_path / "backups", tmp_path / "nothing"
    assert backup(filled, store, backups).returncode == 0
    nothing.mkdir()
    done = backup(filled, nothing, backups)
    assert done.returncode != 0
    assert "is it mounted?" in done.stderr
    assert len(names(backups)) == 1
    assert "is no folder" in backup(filled, tmp_path / "missing", backups).stderr


def test_a_backup_that_broke_off_is_none(filled: str, store: Path, tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    done = backup(filled.replace("/test_", "/gone_"), store, backups)
    assert done.returncode != 0
    assert "does not exist" in done.stderr
    assert names(backups) == []
    assert "there is no backup at all" in restore(filled, store, backups).stderr
    assert backup(filled, store, backups).returncode == 0
    assert not list(backups.glob(".unfinished-*"))


def test_two_backups_at_once_do_not_mix(filled: str, store: Path, tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    backups.mkdir()
    with (backups / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is under way" in backup(filled, store, backups).stderr
    assert names(backups) == []


def test_a_database_that_is_in_use_or_full_is_not_overwritten(
    filled: str, empty_postgres_url: str, store: Path, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    backup(filled, store, backups)
    migrate.upgrade(empty_postgres_url)
    execute(empty_postgres_url, "INSERT INTO quotas (owner) VALUES ('later')")
    refused = restore(empty_postgres_url, store, backups)
    assert refused.returncode != 0
    assert "give --replace" in refused.stderr
    assert execute(empty_postgres_url, "SELECT owner FROM quotas") == [("later",)]

    with psycopg.connect(empty_postgres_url.replace("+psycopg", ""), application_name="rlt-jobs relay"):
        refused = restore(empty_postgres_url, store, backups, "--replace")
    assert "1 connections of the service are open" in refused.stderr
    while execute(empty_postgres_url, OPEN):  # the server's end of one may live on for a moment
        time.sleep(0.01)
    done = restore(empty_postgres_url, store, backups, "--replace")
    assert done.returncode == 0, done.stderr
    assert snapshot(empty_postgres_url) == snapshot(filled)


def test_a_store_that_lost_files_gets_them_back(filled: str, store: Path, tmp_path: Path) -> None:
    backups, whole = tmp_path / "backups", files(store)
    backup(filled, store, backups)
    before = snapshot(filled)
    (store / "builds/1/shards/0.parquet").unlink()
    write(store, "builds/1/shards/1.parquet", "cut")
    write(store, "builds/9/new.parquet", "made since")
    (name,) = names(backups)
    done = restore(filled, store, backups, "--files-only", name)
    assert done.returncode == 0, done.stderr
    assert files(store) == {**whole, "builds/9/new.parquet": "made since"}
    assert snapshot(filled) == before


def test_a_store_in_a_bucket_leaves_the_database_alone_to_be_saved(
    filled: str, empty_postgres_url: str, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    assert backup(filled, None, backups).returncode == 0
    assert restore(empty_postgres_url, None, backups).returncode == 0
    assert snapshot(empty_postgres_url) == snapshot(filled)
