"""Transactions that are cancelled, and a database that is not there."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from rlt_client.errors import Unavailable
from rlt_jobs.database import Database, unbroken

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def sleep_in(database: Database, seconds: float) -> str:
    async with database.begin() as session:
        await session.execute(text("SELECT pg_sleep(:s)"), {"s": seconds})
    return "slept"


async def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    away = Database(f"postgresql+psycopg://rlt@/postgres?host={tmp_path}", name="tests")
    with pytest.raises(Unavailable) as caught:
        await sleep_in(away, 0)
    assert (caught.value.type, caught.value.status) == ("database_unavailable", 503)
    await away.close()


async def test_a_connection_that_the_server_ends_is_unavailable_and_the_next_one_works(database: Database) -> None:
    async def end_itself() -> None:
        async with database.begin() as session:
            await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(Unavailable):
        await end_itself()
    assert await sleep_in(database, 0) == "slept"


async def test_a_client_that_falls_silent_in_mid_transaction_keeps_no_locks(
    database: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does whose machine lost the network: it can neither commit nor break its connection off."""
    monkeypatch.setattr("rlt_jobs.database.IDLE_SECONDS", 1)
    silent = Database(postgres_url, name="tests", pool=1)
    async with database.begin() as session:
        await session.execute(text("CREATE TABLE locked (id int)"))

    async def fall_silent() -> None:
        async with silent.begin() as session:
            await session.execute(text("LOCK TABLE locked"))
            async with database.begin() as other, asyncio.timeout(60):
                await other.execute(text("DROP TABLE locked"))
            await session.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        await fall_silent()
    await silent.close()


async def test_a_statement_that_is_wrong_stays_what_it_is(database: Database) -> None:
    async def misspell() -> None:
        async with database.begin() as session:
            await session.execute(text("SELEKT 1"))

    with pytest.raises(ProgrammingError):
        await misspell()


async def test_a_process_knows_all_tables_whichever_it_imports() -> None:
    """The relay, which imports no store, could not close a build: a foreign key named a table that was not there."""
    script = """
from rlt_jobs.builds.models import Build
from rlt_jobs.database import Database
Database("postgresql+psycopg://nobody@/nothing", name="tests")
print([table.name for table in Build.metadata.sorted_tables])
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert {"builds", "uploads", "versions", "spool"} <= set(ast.literal_eval(said.decode()))


async def test_cancelling_a_query_is_a_cancellation_not_an_outage(database: Database) -> None:
    """Were it an outage, whoever waits for the database to come back would wait for ever."""
    task = asyncio.create_task(sleep_in(database, 30))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(task), 60)
    assert task.cancelled()
    assert await sleep_in(database, 0) == "slept"


async def test_an_unbroken_transaction_ends_before_its_cancellation(database: Database) -> None:
    ended: list[Any] = []

    async def act() -> None:
        ended.append(await sleep_in(database, 0.3))

    task = asyncio.create_task(unbroken(act()))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["slept"]
