"""Builds in a real database, made as the service makes them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from rlt_client.schemas.builds import BuildProblem, BuildRequest
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds import repository
from rlt_jobs.builds.outcomes import Outcome, Scored, Texts
from rlt_jobs.builds.spec import Spec, request_hash
from rlt_jobs.database import Database
from rlt_jobs.leases import Claimed, claim_shard
from rlt_jobs.store.files import Store

MakeBuild = Callable[..., Awaitable[int]]
Claim = Callable[..., Awaitable[Claimed | None]]


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    made = Database(postgres_url, name="tests")
    yield made
    await made.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def make_build(database: Database) -> MakeBuild:
    """A running build of `problems` × `n` samples in shards of `shard_samples`; gives its id."""

    async def make(*, problems: int = 3, n: int = 2, shard_samples: int = 256, owner: str = "ann") -> int:
        rows = [BuildProblem(question=f"Q{i}", answer=f"A{i}") for i in range(problems)]
        request = BuildRequest(dataset=f"set-{uuid.uuid4().hex}", problems=rows, n=n)
        spec = Spec.of(request)
        async with database.begin() as session:
            build = await repository.insert_build(
                session,
                dataset_id=await repository.dataset_id(session, owner, request.dataset),
                owner=owner,
                kind=request.kind,
                n=n,
                spec=spec.stored(),
                spec_hash=spec.hash(),
                request_hash=request_hash(request),
                problems=problems,
            )
            assert build is not None
            await repository.add_problems(session, build.id, 0, rows)
            await repository.start(session, build, shard_samples=shard_samples)
        return build.id

    return make


@pytest.fixture
def claim(database: Database) -> Claim:
    async def take(shard_id: int, *, seconds: float = 60.0) -> Claimed | None:
        async with database.begin() as session:
            return await claim_shard(session, shard_id, worker="test", seconds=seconds)

    return take


@pytest.fixture
def outcome() -> Callable[..., Outcome]:
    """One sample as a worker would report it; scored unless it failed."""

    def make(
        problem: int = 0,
        sample_idx: int = 0,
        status: GenStatus = GenStatus.complete,
        try_: int = 0,
        reward: float = -1.0,
    ) -> Outcome:
        done = status is GenStatus.complete
        return Outcome(
            problem=problem,
            sample_idx=sample_idx,
            try_=try_,
            gen_status=status,
            request_key=f"{problem}/{sample_idx}/{try_}".encode(),
            prompt_tokens=5,
            completion_tokens=7,
            texts=Texts(explanation=f"E{problem}.{sample_idx}.{try_}", completion="…") if done else None,
            score=Scored(ScoreStatus.scored, reward=reward, ss_mean=reward) if done else None,
        )

    return make
