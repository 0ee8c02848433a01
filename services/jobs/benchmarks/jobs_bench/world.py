"""What is measured: a Postgres of its own that keeps what it is told, with the tables, and rows like a build's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar
from uuid import uuid4

from sqlalchemy import func, update

from rlt_client.schemas.builds import BuildRequest, ShardState
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs import migrate, tables
from rlt_jobs.builds import repository
from rlt_jobs.builds.models import Shard
from rlt_jobs.builds.outcomes import Outcome, Scored, Texts
from rlt_jobs.builds.repository import ScorerKey
from rlt_jobs.builds.spec import Spec, request_hash
from rlt_jobs.database import Database
from rlt_jobs.leases import Claimed
from rlt_local.databases import prepare_postgres, start

__all__ = ["OWNER", "TEXT", "add_build", "hold", "outcomes", "pin", "postgres", "texts", "with_database"]

OWNER: Final = "bench"
TEXT: Final = 2_000  # characters of one sample's text
VOCABULARY: Final = 4_000
REVISION: Final = "sha256:" + "5e" * 32

T = TypeVar("T")


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a migrated database that writes to disk before it says so (fsync, synchronous_commit)."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        program = prepare_postgres(Path(folder) / "data", durable=True)
        with start(program, Path(folder) / "log", die_with_caller=True) as server:
            server.wait_ready()
            migrate.upgrade(server.url)
            yield server.url


def with_database(url: str, work: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    """Run `work` with a pool of its own and close it."""

    async def run() -> T:
        assert tables.metadata.tables  # every foreign key has its table
        database = Database(url, name="jobs_bench")
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def texts(count: int, seed: int) -> list[Texts]:
    """Texts whose words are as unevenly common as those of a language: 2,000 characters become about 800 bytes."""
    chance = random.Random(seed)  # noqa: S311 the same texts in every run
    words = ["".join(chance.choices("etaoinshrdlucmfwypvbgkqjxz", k=chance.randint(2, 9))) for _ in range(VOCABULARY)]
    weights = [1 / rank for rank in range(1, VOCABULARY + 1)]
    return [Texts(explanation=_text(chance, words, weights), completion=None) for _ in range(count)]


def _text(chance: random.Random, words: list[str], weights: list[float]) -> str:
    return " ".join(chance.choices(words, weights, k=TEXT // 4))[:TEXT]


def outcomes(lo: int, rows: int, n: int, made: list[Texts]) -> list[Outcome]:
    """Complete, scored samples of the problems from `lo` on, `n` of each."""
    return [_outcome(lo + row // n, row % n, made[row % len(made)]) for row in range(rows)]


def _outcome(problem: int, sample_idx: int, made: Texts) -> Outcome:
    reward = -((problem * 31 + sample_idx * 17) % 1000) / 100
    return Outcome(
        problem=problem,
        sample_idx=sample_idx,
        try_=0,
        gen_status=GenStatus.complete,
        request_key=problem.to_bytes(28, "big") + sample_idx.to_bytes(4, "big"),
        finish_reason="stop",
        policy_revision=REVISION,
        prompt_tokens=180,
        completion_tokens=300 + (problem * 7 + sample_idx) % 500,
        texts=made,
        score=Scored(
            ScoreStatus.scored,
            reward=reward,
            ss_mean=reward,
            ss_min=2 * reward,
            ss_sum=40 * reward,
            kl_mean=0.1,
            kl_max=1.5,
            format=1.0,
            n_answer=40,
            n_think=500,
        ),
    )


async def pin(database: Database, build_id: int) -> int:
    """The scorer of a build's scores."""
    async with database.begin() as session:
        key = ScorerKey("student", "r", "sent", None, "mini", "f", "k1", 0.7, 0.7)
        return await repository.pin_scorer(session, build_id, key)


async def hold(database: Database, build_id: int, lo: int) -> Claimed:
    """A lease of the build's shard that begins at `lo`, for as long as a benchmark lasts."""
    async with database.begin() as session:
        values = {"state": ShardState.running, "lease_token": uuid4(), "lease_until": func.now() + timedelta(hours=1)}
        held = update(Shard).where(Shard.build_id == build_id, Shard.lo == lo).values(values)
        shard = (await session.execute(held.returning(Shard.id, Shard.lease_token, Shard.hi))).one()
    assert shard.lease_token is not None
    return Claimed(shard.id, shard.lease_token, build_id, lo, shard.hi, 0)


async def add_build(database: Database, *, problems: int, n: int, shard_samples: int) -> int:
    """A running build of so many problems, cut into shards, without the rows of its problems."""
    request = BuildRequest.model_validate({"dataset": "bench", "problems": [{"question": "Q", "answer": "A"}], "n": n})
    spec = Spec.of(request)
    async with database.begin() as session:
        build = await repository.insert_build(
            session,
            dataset_id=await repository.dataset_id(session, OWNER, request.dataset),
            owner=OWNER,
            kind=request.kind,
            n=n,
            spec=spec.stored(),
            spec_hash=spec.hash(),
            request_hash=request_hash(request),
            problems=problems,
        )
        assert build is not None
        await repository.start(session, build, shard_samples=shard_samples)
        return build.id
