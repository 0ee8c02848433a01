"""Builds in a real database, made as the service makes them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import update

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.errors import APIError
from rlt_client.schemas.builds import MAX_INLINE_PROBLEMS, BuildProblem, BuildRequest, BuildState
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_client.schemas.explain import ExplainRequest
from rlt_client.testing import FakePlatform
from rlt_jobs.builds import repository
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.outcomes import Outcome, Scored, Texts
from rlt_jobs.builds.spec import Spec, request_hash
from rlt_jobs.builds.work import Services
from rlt_jobs.database import Database
from rlt_jobs.leases import Claimed, claim_shard
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store

MakeBuild = Callable[..., Awaitable[int]]
Claim = Callable[..., Awaitable[Claimed | None]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def database(postgres_url: str) -> AsyncIterator[Database]:
    """One for all tests of a module, which share its event loop: statements are compiled once."""
    made = Database(postgres_url, name="tests")
    yield made
    await made.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """As long-lived as the module's database, which names its files."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest_asyncio.fixture(loop_scope="module")
async def make_build(database: Database) -> MakeBuild:
    """A running build of `problems` × `n` samples in shards of `shard_samples`; gives its id.

    Builds that earlier tests left open are cancelled: claims take the best shard of all. No lease of theirs runs out.
    """
    async with database.begin() as session:
        await session.execute(update(Build).where(Build.finished_at.is_(None)).values(state=BuildState.cancelled))
        for leased in (Build, Shard):
            await session.execute(update(leased).where(leased.lease_until.is_not(None)).values(lease_until=None))

    async def make(
        *, problems: int = 3, n: int = 2, shard_samples: int = 256, owner: str = "ann", **options: Any
    ) -> int:
        given = {"explanation": "because"} if options.get("kind") == "score" else {}
        rows = [BuildProblem(question=f"Q{i}", answer=f"A{i}", **given) for i in range(problems)]
        shown = rows[:MAX_INLINE_PROBLEMS]
        request = BuildRequest(dataset=f"set-{uuid.uuid4().hex}", problems=shown, n=n, **options)
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


class Platform(FakePlatform):
    """Teacher and reward server whose answers depend on question and seed alone, and which can be told to misbehave.

    `rules`: called with each request's path and question (of its first item); what one returns is raised.
    """

    def __init__(self) -> None:
        super().__init__(explain=self._said, refuse=self._refused)
        self.rules: list[Callable[[str, str], APIError | None]] = []
        self.delay = 0.0
        """Seconds of an explanation."""
        self.left = math.inf
        """Explanations that are still written; those asked for after them take for ever."""

    @staticmethod
    def said(question: str, seed: int | None) -> str:
        return f"{question}: {hashlib.sha256(f'{question}/{seed}'.encode()).hexdigest()}"

    def transport(self) -> httpx.AsyncBaseTransport:
        async def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/explain":
                self.left -= 1
                await asyncio.sleep(self.delay if self.left >= 0 else 3_600)
            return self.handle(request)

        return httpx.MockTransport(answer)

    def _said(self, request: ExplainRequest, _index: int) -> str:
        return self.said(request.question, request.seed)

    def _refused(self, request: httpx.Request) -> APIError | None:
        body = json.loads(request.content or b"{}")
        question = body.get("question") or (body.get("items") or [{}])[0].get("question", "")
        for rule in self.rules:
            if error := rule(request.url.path, question):
                return error
        return None


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def settings(postgres_url: str, store: Store) -> Settings:
    return make_settings(postgres_url, store)


@pytest.fixture(scope="module")
def module_settings(postgres_url: str, store: Store) -> Settings:
    return make_settings(postgres_url, store)


def make_settings(postgres_url: str, store: Store) -> Settings:
    return Settings(
        database_url=postgres_url,
        store=store.url,
        lease_seconds=20,
        heartbeat_seconds=0.1,
        control_seconds=0.05,
        flush_seconds=0.1,
        patience_seconds=0,
        start_in_flight=4,
        max_in_flight=4,
    )


@pytest_asyncio.fixture(loop_scope="module")
async def services(settings: Settings, database: Database, store: Store, platform: Platform) -> AsyncIterator[Services]:
    """What a worker works with, its HTTP ending in `platform`."""
    transport = platform.transport()
    async with (
        AsyncTeacherClient("http://teacher", patience=0, transport=transport) as teacher,
        AsyncRewardClient("http://reward", patience=0, transport=transport) as reward,
    ):
        yield Services(settings, database, store, teacher, reward, worker="test")
