"""Pages of samples: every order, direction and filter gives what sorting all rows in Python gives, from an index."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select, text

from rlt_client.schemas.builds import SampleSort
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds import browse
from rlt_jobs.builds.browse import AS_INDEXED, Page, SampleFilter, samples_query
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.models import Build, Sample, Score
from rlt_jobs.builds.outcomes import Outcome, Scored
from rlt_jobs.builds.repository import ScorerKey, pin_scorer
from rlt_jobs.database import Database
from rlt_jobs.leases import Claimed

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROBLEMS, N = 40, 3
FILTERS = list(product((None, *GenStatus), (None, *ScoreStatus)))


def made(problem: int, sample_idx: int, chance: random.Random) -> Outcome:
    """Lengths and rewards come several times each, so that ties are met; what is not complete may be scored too."""
    state = chance.choices(list(GenStatus), weights=[60, 10, 10, 8, 8, 4])[0]
    status = chance.choices([None, *ScoreStatus], weights=[10, 60, 15, 15])[0]
    reward = -chance.randrange(20) / 4 if status is ScoreStatus.scored else None
    return Outcome(
        problem=problem,
        sample_idx=sample_idx,
        try_=0,
        gen_status=state,
        request_key=b"k",
        completion_tokens=chance.randrange(12),
        score=None if status is None else Scored(status, reward=reward),
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def build(database: Database) -> Build:
    """One of 40 × 3 samples in all states, with scores by its scorer and by another."""
    chance = random.Random(1)
    outcomes = [made(row // N, row % N, chance) for row in range(PROBLEMS * N)]
    async with database.begin() as session:
        dataset = await session.scalar(text("INSERT INTO datasets (owner, name) VALUES ('ann', 'b') RETURNING id"))
        common = {"dataset_id": dataset, "owner": "ann", "kind": "generate", "state": "running", "n": N, "spec": {}}
        kept = Build(**common, spec_hash=b"", request_hash=b"", problems=PROBLEMS)
        session.add(kept)
        await session.flush()
        lease_of = "INSERT INTO shards (build_id, lo, hi, total, state, lease_token) VALUES (:build, 0, :hi, 120, "
        values = {"build": kept.id, "hi": PROBLEMS}
        shard = (
            await session.execute(text(f"{lease_of} 'running', gen_random_uuid()) RETURNING id, lease_token"), values)
        ).one()
        lease = Claimed(shard.id, shard.lease_token, kept.id, 0, PROBLEMS, 0)
        key = ("s", "r", "sent", None, "mini", "f", "k1", 0.7, 0.7)
        scorer = await pin_scorer(session, kept.id, ScorerKey(*key))
        await flush(session, lease, outcomes, scorer_id=scorer, seconds=1)
        await session.refresh(kept)
        copied = "INSERT INTO scores (build_id, problem, sample_idx, scorer_id, status, reward) "
        other = f"{copied} SELECT build_id, problem, sample_idx, scorer_id + 1, 'scored', 0.5 FROM scores"
        await session.execute(text(other))
    async with database.begin() as session:
        await session.execute(text("ANALYZE"))
        return await session.get_one(Build, kept.id)


async def everything(database: Database, build: Build) -> list[tuple[Sample, Score | None]]:
    async with database.begin() as session:
        samples = (await session.scalars(select(Sample).where(Sample.build_id == build.id))).all()
        mine = select(Score).where(Score.build_id == build.id, Score.scorer_id == build.scorer_id)
        scores = {(score.problem, score.sample_idx): score for score in await session.scalars(mine)}
    return [(sample, scores.get((sample.problem, sample.sample_idx))) for sample in samples]


def expected(
    rows: Sequence[tuple[Sample, Score | None]], sort: SampleSort, descending: bool, wanted: SampleFilter
) -> list[tuple[int, int]]:
    found = [
        (sample, score)
        for sample, score in rows
        if wanted.gen_status in (None, sample.gen_status)
        and wanted.score_status in (None, score.status if score else ScoreStatus.skipped)
        and (sort is not SampleSort.by_reward or (score is not None and score.reward is not None))
    ]
    ordered = sorted(found, key=lambda row: browse.sort_key(sort, *row), reverse=descending)
    return [(sample.problem, sample.sample_idx) for sample, _ in ordered]


@pytest.mark.parametrize("sort", SampleSort)
async def test_pages_are_what_sorting_all_rows_gives(database: Database, build: Build, sort: SampleSort) -> None:
    rows = await everything(database, build)
    for descending, (state, status) in product((False, True), FILTERS):
        wanted = SampleFilter(state, status)
        got: list[tuple[int, int]] = []
        after: list[Any] | None = None
        async with database.begin() as session:
            while page := await browse.samples(
                session, build, sort, descending=descending, wanted=wanted, after=after, limit=41
            ):
                got += [(sample.problem, sample.sample_idx) for sample, _ in page]
                after = browse.sort_key(sort, *page[-1])
        assert got == expected(rows, sort, descending, wanted), (descending, wanted)


async def test_scores_come_from_the_builds_own_scorer(database: Database, build: Build) -> None:
    rows = {(sample.problem, sample.sample_idx): score for sample, score in await everything(database, build)}
    async with database.begin() as session:
        page = await browse.samples(
            session, build, SampleSort.by_length, descending=False, wanted=SampleFilter(), after=None, limit=1_000
        )
    assert len(page) == PROBLEMS * N
    for sample, score in page:
        known = rows[sample.problem, sample.sample_idx]
        assert (score and score.reward) == (known and known.reward)


AFTER: dict[SampleSort, list[Any]] = {
    SampleSort.by_index: [20, 1],
    SampleSort.by_length: [6, 20, 1],
    SampleSort.by_reward: [-2.0, 20, 1],
}


@pytest.mark.parametrize(("sort", "descending"), list(product(SampleSort, (False, True))))
async def test_a_page_is_read_from_an_index_and_never_sorted(
    database: Database, build: Build, sort: SampleSort, descending: bool
) -> None:
    for state, status in FILTERS:
        if sort is SampleSort.by_length and status is ScoreStatus.score_error:
            continue  # errors are few, and sorted
        if sort is SampleSort.by_reward and status in (ScoreStatus.score_error, ScoreStatus.skipped):
            continue  # none has a reward: nothing is read, and that is sorted
        page = Page(sort, descending, SampleFilter(state, status), AFTER[sort], 50)
        async with database.begin() as session:
            await session.execute(AS_INDEXED)
            bound = (
                samples_query(page.shape)
                .params(page.values(build))
                .compile(dialect=session.get_bind().dialect, compile_kwargs={"literal_binds": True})
            )
            plan = "\n".join((await session.scalars(text(f"EXPLAIN {bound}".replace(":", "\\:")))).all())
        assert "Sort  (" not in plan, plan
        assert "Seq Scan" not in plan, plan
        assert "Index" in plan, plan
