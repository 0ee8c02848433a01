"""A real Postgres and a real Valkey for tests that ask for them, started once a session from wheels."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from rlt_jobs import migrate
from rlt_local.databases import Running, prepare_postgres, prepare_valkey, start
from rlt_local.ports import free

TEMPLATE = "rlt_template"


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("postgres")
    program = prepare_postgres(folder / "data", durable=False)
    with start(program, folder / "log", die_with_caller=True) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Running) -> str:
    """Name of a migrated database that others are copied from."""
    _execute(postgres_server.url, f"CREATE DATABASE {TEMPLATE}")
    migrate.upgrade(_database(postgres_server.url, TEMPLATE))
    return TEMPLATE


@pytest.fixture(scope="module")
def postgres_url(postgres_server: Running, postgres_template: str) -> Iterator[str]:
    """A fresh, migrated database for each module: `postgresql+psycopg://…`."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(postgres_server.url, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield _database(postgres_server.url, name)
    _execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_postgres_url(postgres_server: Running) -> Iterator[str]:
    """A database without tables."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(postgres_server.url, f"CREATE DATABASE {name}")
    yield _database(postgres_server.url, name)
    _execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("valkey")
    program = prepare_valkey(folder, *free(), durable=False)
    with start(program, folder / "log", die_with_caller=True) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def valkey_url(valkey_server: Running) -> str:
    """An empty Valkey for each module: `redis://…`."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement.encode())


def _database(url: str, name: str) -> str:
    return url.replace("/postgres?", f"/{name}?")
