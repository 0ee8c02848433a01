"""The question by which a cluster decides how many workers there are, asked of a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from sqlalchemy import text, update
from sqlalchemy.exc import ProgrammingError

from rlt_client.schemas.builds import BuildState, ShardState
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.database import Database

from .conftest import Claim, MakeBuild

KEDA = Path(__file__).parents[2] / "k8s" / "components" / "keda"
pytestmark = pytest.mark.asyncio(loop_scope="module")


def question() -> str:
    [trigger] = yaml.safe_load((KEDA / "workers.yaml").read_text(encoding="utf-8"))["spec"]["triggers"]
    query: str = trigger["metadata"]["query"]
    return query


async def waiting(database: Database) -> int:
    async with database.begin() as session:
        return int(await session.scalar(text(question())) or 0)


async def set_state(database: Database, build: int, state: BuildState) -> None:
    async with database.begin() as session:
        await session.execute(update(Build).where(Build.id == build).values(state=state))


async def shards(database: Database, build: int) -> list[int]:
    async with database.begin() as session:
        rows = await session.execute(text("SELECT id FROM shards WHERE build_id = :id ORDER BY id"), {"id": build})
        return [row.id for row in rows]


async def test_what_a_worker_could_do_is_counted(database: Database, make_build: MakeBuild, claim: Claim) -> None:
    assert await waiting(database) == 0
    build = await make_build(problems=5, n=2, shard_samples=2)
    first, second, *_ = await shards(database, build)
    assert await waiting(database) == 5
    assert await claim(first)
    assert await waiting(database) == 5, "running ones keep their workers"
    async with database.begin() as session:
        await session.execute(update(Shard).where(Shard.id == first).values(state=ShardState.done, lease_token=None))
        await session.execute(update(Shard).where(Shard.id == second).values(state=ShardState.dead))
    assert await waiting(database) == 3


async def test_builds_that_nobody_works_on_need_no_worker(database: Database, make_build: MakeBuild) -> None:
    build = await make_build(problems=4, n=1, shard_samples=1)
    for state, want in {
        BuildState.paused: 0,
        BuildState.cancelled: 0,
        BuildState.importing: 1,
        BuildState.finishing: 1,
        BuildState.running: 4,
    }.items():
        await set_state(database, build, state)
        assert await waiting(database) == want, state


@pytest_asyncio.fixture(loop_scope="module")
async def role(database: Database) -> AsyncIterator[None]:
    """As `role.sql` makes it, in this database; roles are the whole server's, so it goes again."""
    async with database.begin() as session:
        name = await session.scalar(text("SELECT current_database()"))
        for statement in (KEDA / "role.sql").read_text(encoding="utf-8").split(";\n"):
            made = statement.replace(":'password'", "'a password'").replace("DATABASE rlt", f'DATABASE "{name}"')
            if made.strip():
                await session.execute(text(made))
    yield
    async with database.begin() as session:
        await session.execute(text("DROP OWNED BY rlt_keda"))
        await session.execute(text("DROP ROLE rlt_keda"))


async def as_role(database: Database, statement: str) -> int:
    async with database.begin() as session:
        await session.execute(text("SET LOCAL ROLE rlt_keda"))
        return int(await session.scalar(text(statement)) or 0)


@pytest.mark.usefixtures("role")
async def test_its_role_may_ask_that_and_nothing_else(database: Database, make_build: MakeBuild) -> None:
    await make_build(problems=2, n=1, shard_samples=1)
    assert await as_role(database, question()) == 2
    for forbidden in ("SELECT question FROM problems", "SELECT owner FROM builds", "UPDATE shards SET state = 'dead'"):
        with pytest.raises(ProgrammingError, match="permission denied"):
            await as_role(database, forbidden)
