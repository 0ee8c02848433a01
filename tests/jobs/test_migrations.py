"""The schema: from nothing to the models and back."""

from __future__ import annotations

import threading

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import create_engine, inspect, text

from rlt_jobs import migrate


def tables(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_an_empty_database_reaches_the_models_and_goes_back(empty_postgres_url: str) -> None:
    migrate.upgrade(empty_postgres_url)
    command.check(migrate.config(empty_postgres_url))  # raises where models and tables differ
    found = tables(empty_postgres_url)
    assert {"builds", "shards", "samples", "scores", "outbox", "samples_p00", "scores_p31"} <= found

    command.downgrade(migrate.config(empty_postgres_url), "base")
    assert tables(empty_postgres_url) == {"alembic_version"}
    migrate.upgrade(empty_postgres_url)  # types were dropped too


def test_drift_is_noticed(empty_postgres_url: str) -> None:
    migrate.upgrade(empty_postgres_url)
    engine = create_engine(empty_postgres_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE builds ADD COLUMN stray int"))
    engine.dispose()
    with pytest.raises(CommandError, match="stray"):
        command.check(migrate.config(empty_postgres_url))


def test_two_migrations_at_once_take_turns(empty_postgres_url: str) -> None:
    failures: list[Exception] = []

    def run() -> None:
        try:
            migrate.upgrade(empty_postgres_url)
        except Exception as error:  # carried out of the thread
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert "builds" in tables(empty_postgres_url)
