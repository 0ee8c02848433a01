"""The fenced flush: what replaces what, and counters that equal the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import func, insert, select, text, update

from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds import repository
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.models import Build, Sample, Score, Scorer, Shard
from rlt_jobs.builds.outcomes import Outcome, Scored, Texts, decompress
from rlt_jobs.builds.repository import ScorerChanged, ScorerKey, missing, pin_scorer, totals
from rlt_jobs.database import Database
from rlt_jobs.leases import Claimed, LeaseLost, give_back, reap
from rlt_jobs.store.models import Spool

pytestmark = pytest.mark.asyncio(loop_scope="module")


SCORER = ScorerKey("student", "rev-1", "sent", None, "mini", "f00d", "k1", 0.7, 0.7)

Write = Callable[..., Awaitable[int]]


@pytest_asyncio.fixture(loop_scope="module")
async def lease(database: Database, make_build: Any, claim: Any) -> Claimed:
    """A claimed shard of 3 problems × 2 samples."""
    build_id = await make_build(problems=3, n=2)
    async with database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == build_id))
    taken: Claimed = await claim(shard_id)
    return taken


@pytest.fixture
def write(database: Database) -> Write:
    async def run(lease: Claimed, *outcomes: Outcome) -> int:
        async with database.begin() as session:
            scorer_id = await pin_scorer(session, lease.build_id, SCORER)
            return await flush(session, lease, outcomes, scorer_id=scorer_id, seconds=2.0)

    return run


async def counters_equal_rows(database: Database, build_id: int) -> None:
    async with database.begin() as session:
        found = (await totals(session, [build_id]))[build_id]
        by_status = select(
            Sample.gen_status, func.count(), func.sum(Sample.completion_tokens), func.sum(Sample.prompt_tokens)
        )
        rows = (await session.execute(by_status.where(Sample.build_id == build_id).group_by(Sample.gen_status))).all()
        scores = select(Score.status, func.count()).where(Score.build_id == build_id).group_by(Score.status)
        scored = {status.value: count for status, count in await session.execute(scores)}
    assert {name: count for name, count in found.gen.items() if count} == {status.value: n for status, n, _, _ in rows}
    assert found.completion_tokens == sum(tokens for _, _, tokens, _ in rows)
    assert found.prompt_tokens == sum(tokens for _, _, _, tokens in rows)
    assert {"scored": found.scored, "score_error": found.score_error} == {"scored": 0, "score_error": 0} | scored


async def sample(database: Database, lease: Claimed, problem: int, idx: int) -> Sample:
    async with database.begin() as session:
        return await session.get_one(Sample, (lease.build_id, problem, idx))


async def test_outcomes_become_rows_scores_and_spooled_texts(
    database: Database, lease: Claimed, write: Write, outcome: Any
) -> None:
    assert await write(lease, outcome(0, 0), outcome(0, 1, GenStatus.context_overflow), outcome(1, 0)) == 3
    await counters_equal_rows(database, lease.build_id)
    async with database.begin() as session:
        spooled = select(Spool.problem, Spool.sample_idx, Spool.texts).order_by(Spool.problem)
        rows = (await session.execute(spooled.where(Spool.shard_id == lease.shard_id))).all()
        shard = await session.get_one(Shard, lease.shard_id)
        assert await missing(session, lease) == [(1, 1), (2, 0), (2, 1)]
    assert [(p, s, decompress(blob).explanation) for p, s, blob in rows] == [(0, 0, "E0.0.0"), (1, 0, "E1.0.0")]
    assert (shard.barren, shard.tokens_per_s, shard.samples_per_s) == (0, 21 / 2, 3 / 2)


async def test_a_complete_sample_is_never_replaced_within_its_try(
    database: Database, lease: Claimed, write: Write, outcome: Any
) -> None:
    await write(lease, outcome(0, 0, reward=-1.0))
    assert await write(lease, outcome(0, 0, reward=-9.0), outcome(0, 1)) == 1
    async with database.begin() as session:
        rewards = select(Score.reward).where(Score.build_id == lease.build_id, Score.sample_idx == 0)
        assert (await session.scalars(rewards)).all() == [-1.0]
    await counters_equal_rows(database, lease.build_id)


async def test_errors_of_no_scorer_are_not_counted_either(database: Database, lease: Claimed, outcome: Any) -> None:
    error = Scored(ScoreStatus.score_error, reason="internal")
    for made in ([outcome(0, 0)], [outcome(0, 0), outcome(0, 1)]):  # appended, then merged
        async with database.begin() as session:
            unscored = [replace(each, score=error) for each in made]
            await flush(session, lease, unscored, scorer_id=None, seconds=1.0)
    await counters_equal_rows(database, lease.build_id)


async def test_a_scorer_that_was_kept_without_its_reward_goes_on(database: Database, lease: Claimed) -> None:
    key = replace(SCORER, student_revision="rev-early", spec='{"preset": "rlt"}')
    async with database.begin() as session:
        early = Scorer(**{name: getattr(key, name) for name in key.__dataclass_fields__ if name != "spec"})
        early.hash = key.early_hash()
        session.add(early)
        await session.flush()
        await session.execute(update(Build).where(Build.id == lease.build_id).values(scorer_id=early.id))
        assert await pin_scorer(session, lease.build_id, key) == early.id
    with pytest.raises(ScorerChanged):
        async with database.begin() as session:
            await pin_scorer(session, lease.build_id, replace(key, student_revision="rev-2"))


@pytest.mark.parametrize("passing", [GenStatus.engine_error, GenStatus.cancelled])
async def test_an_error_that_may_pass_is_replaced(
    database: Database, lease: Claimed, write: Write, outcome: Any, passing: GenStatus
) -> None:
    await write(lease, outcome(0, 0, passing))
    async with database.begin() as session:
        assert (0, 0) in await missing(session, lease)
    assert await write(lease, outcome(0, 0)) == 1
    assert (await sample(database, lease, 0, 0)).gen_status is GenStatus.complete
    await counters_equal_rows(database, lease.build_id)


@pytest.mark.parametrize("kept", [GenStatus.truncated, GenStatus.malformed, GenStatus.context_overflow])
async def test_an_outcome_of_the_model_is_kept(
    database: Database, lease: Claimed, write: Write, outcome: Any, kept: GenStatus
) -> None:
    await write(lease, outcome(0, 0, kept))
    assert await write(lease, outcome(0, 0)) == 0
    assert (await sample(database, lease, 0, 0)).gen_status is kept
    async with database.begin() as session:
        assert (0, 0) not in await missing(session, lease)


async def test_a_higher_try_replaces_anything_and_its_old_scores(
    database: Database, lease: Claimed, write: Write, outcome: Any
) -> None:
    await write(lease, outcome(0, 0, reward=-1.0), outcome(0, 1, try_=1, reward=-3.0))
    assert await write(lease, outcome(0, 0, try_=1, reward=-2.0), outcome(0, 1, try_=0, reward=-4.0)) == 1
    assert (await sample(database, lease, 0, 0)).try_ == 1
    async with database.begin() as session:
        rewards = select(Score.reward).where(Score.build_id == lease.build_id).order_by(Score.sample_idx)
        assert (await session.scalars(rewards)).all() == [-2.0, -3.0]
        texts = select(Spool.texts).where(Spool.build_id == lease.build_id).order_by(Spool.sample_idx)
        assert [decompress(b).explanation for b in await session.scalars(texts)] == ["E0.0.1", "E0.1.1"]
    await counters_equal_rows(database, lease.build_id)


async def test_a_try_that_fails_leaves_no_score_or_text_of_the_one_before(
    database: Database, lease: Claimed, write: Write, outcome: Any
) -> None:
    await write(lease, outcome(0, 0))
    assert await write(lease, outcome(0, 0, GenStatus.truncated, try_=1)) == 1
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).where(Score.build_id == lease.build_id)) == 0
        assert await session.scalar(select(func.count()).where(Spool.build_id == lease.build_id)) == 0
    await counters_equal_rows(database, lease.build_id)


async def test_a_lost_lease_writes_nothing(
    database: Database, lease: Claimed, write: Write, outcome: Any, claim: Any
) -> None:
    await write(lease, outcome(0, 0))
    async with database.begin() as session:
        past = text("now() - interval '1 second'")
        await session.execute(update(Shard).where(Shard.id == lease.shard_id).values(lease_until=past))
        await reap(session, max_barren=5)
    with pytest.raises(LeaseLost):
        await write(lease, outcome(0, 1))
    successor = await claim(lease.shard_id)
    with pytest.raises(LeaseLost):
        await write(lease, outcome(0, 1))
    assert await write(successor, outcome(0, 1)) == 1
    await counters_equal_rows(database, lease.build_id)


async def test_only_new_rows_clear_the_count_of_barren_leases(
    database: Database, lease: Claimed, write: Write, outcome: Any, claim: Any
) -> None:
    async def barren() -> int:
        async with database.begin() as session:
            return await session.scalar(select(Shard.barren).where(Shard.id == lease.shard_id)) or 0

    await write(lease, outcome(0, 0))
    assert await barren() == 0
    async with database.begin() as session:
        await give_back(session, lease, blameless=False, max_barren=5)
        await session.execute(update(Shard).where(Shard.id == lease.shard_id).values(retry_at=None))
    again = await claim(lease.shard_id)
    await write(again, outcome(0, 0))  # the same once more: nothing new
    assert await barren() == 1
    await write(again, outcome(0, 1))
    assert await barren() == 0


async def test_a_scorer_that_changes_in_mid_build_is_refused(
    database: Database, lease: Claimed, write: Write, outcome: Any
) -> None:
    await write(lease, outcome(0, 0))
    other = ScorerKey("student", "rev-2", "sent", None, "mini", "f00d", "k1", 0.7, 0.7)
    with pytest.raises(ScorerChanged, match="rev-2"):
        async with database.begin() as session:
            await pin_scorer(session, lease.build_id, other)


async def test_a_shard_that_asks_again_takes_only_what_failed_and_totals_stay_right(
    database: Database, lease: Claimed, write: Write, outcome: Any, claim: Any
) -> None:
    await write(
        lease,
        *(outcome(p, s) for p in (0, 1) for s in (0, 1)),
        outcome(2, 0, GenStatus.truncated),
        outcome(2, 1, GenStatus.malformed),
    )
    async with database.begin() as session:
        values = {"build_id": lease.build_id, "lo": 0, "hi": 3, "try_": 1, "only": [GenStatus.truncated], "total": 6}
        retry_id = await session.scalar(insert(Shard).values(values).returning(Shard.id))
    retry = await claim(retry_id)
    async with database.begin() as session:
        assert await missing(session, retry) == [(2, 0)]
    await write(retry, outcome(2, 0, try_=1))
    async with database.begin() as session:
        assert await missing(session, retry) == []
        found = (await totals(session, [lease.build_id]))[lease.build_id]
    assert (found.gen["complete"], found.gen["truncated"], found.gen["malformed"]) == (5, 0, 1)
    await counters_equal_rows(database, lease.build_id)


async def test_problems_of_a_shard_come_with_their_texts(database: Database, lease: Claimed) -> None:
    async with database.begin() as session:
        found = await repository.problems(session, lease.build_id, [2, 1])
    assert {idx: (problem.question, problem.answer) for idx, problem in found.items()} == {
        1: ("Q1", "A1"),
        2: ("Q2", "A2"),
    }


async def test_a_shard_dropped_in_mid_flush_does_not_break_the_connection(
    database: Database, lease: Claimed, write: Write, outcome: Any
) -> None:
    """The temporary tables outlive an aborted flush; the next one must find them empty."""

    async def abort() -> None:
        async with database.begin() as session:
            await flush(session, lease, [outcome(0, 0, GenStatus.truncated)], scorer_id=None, seconds=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await abort()
    assert await write(lease, outcome(1, 0)) == 1
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).where(Sample.build_id == lease.build_id)) == 1


def with_texts(made: Outcome, explanation: str, reason: str | None = None) -> Outcome:
    return replace(made, texts=Texts(explanation=explanation, completion=explanation), gen_reason=reason)


async def test_of_one_sample_told_twice_in_a_flush_one_is_kept(
    database: Database, lease: Claimed, write: Write, outcome: Any
) -> None:
    """By the rule for rows: the higher try, and within a try the first that is no passing error."""
    told = [
        outcome(0, 0, reward=-1.0),
        outcome(0, 0, reward=-2.0),
        outcome(1, 0, GenStatus.engine_error),
        outcome(1, 0, reward=-3.0),
        outcome(2, 0, try_=1, reward=-4.0),
        outcome(2, 0, reward=-5.0),
    ]
    assert await write(lease, *told) == 3
    async with database.begin() as session:
        rewards = select(Score.reward).where(Score.build_id == lease.build_id).order_by(Score.problem)
        assert (await session.scalars(rewards)).all() == [-1.0, -3.0, -4.0]
    assert await write(lease, *told, outcome(2, 1)) == 1  # the same through the slower way: nothing but the new one
    await counters_equal_rows(database, lease.build_id)


@pytest.mark.parametrize("known", [False, True], ids=["all new", "one is there"])
async def test_any_characters_and_sizes_come_back_as_they_were(
    database: Database, lease: Claimed, write: Write, outcome: Any, known: bool
) -> None:
    odd = "\0 \\N \\. \t\r\n\u2028 \x1b \ufffe 𝔘 \"'{}"
    big = "".join(chr(0x4E00 + (i * i) % 20_000) for i in range(300_000))  # a megabyte that compresses badly
    if known:
        await write(lease, outcome(2, 1))
    given = [with_texts(outcome(0, 0), odd), with_texts(outcome(0, 1), big), with_texts(outcome(1, 0), "")]
    assert await write(lease, *given, *([outcome(2, 1)] if known else [])) == 3
    async with database.begin() as session:
        spooled = select(Spool.texts).where(Spool.shard_id == lease.shard_id, Spool.problem < 2)
        blobs = await session.scalars(spooled.order_by(Spool.problem, Spool.sample_idx))
        assert [decompress(blob).explanation for blob in blobs] == [odd, big, ""]


@pytest.mark.parametrize("known", [False, True], ids=["all new", "one is there"])
async def test_a_servers_reason_with_a_nul_is_kept_without_it(
    database: Database, lease: Claimed, write: Write, outcome: Any, known: bool
) -> None:
    failed = replace(outcome(0, 0, GenStatus.malformed), gen_reason="no\0tag")
    before = [outcome(0, 1)] * known
    await write(lease, *before)
    assert await write(lease, failed, *before) == 1
    assert (await sample(database, lease, 0, 0)).gen_reason == "no\N{REPLACEMENT CHARACTER}tag"


async def test_an_empty_flush_changes_nothing(database: Database, lease: Claimed, write: Write) -> None:
    assert await write(lease) == 0
    async with database.begin() as session:
        assert await session.scalar(select(Shard.barren).where(Shard.id == lease.shard_id)) == 1


async def test_two_leases_that_write_the_same_samples_at_once_keep_one_of_each(
    database: Database, lease: Claimed, write: Write, outcome: Any, claim: Any
) -> None:
    """A second shard over the same range: both copy, one waits for the other and then merges."""
    async with database.begin() as session:
        values = {"build_id": lease.build_id, "lo": 0, "hi": 3, "total": 6}
        other_id = await session.scalar(insert(Shard).values(values).returning(Shard.id))
    other = await claim(other_id)
    every = [outcome(p, s) for p in range(3) for s in range(2)]
    changed = await asyncio.gather(write(lease, *every), write(other, *every))
    assert sorted(changed) == [0, 6]
    await counters_equal_rows(database, lease.build_id)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute, and minutes beside other tests
async def test_two_hundred_thousand_rows_are_all_there_once(
    database: Database, make_build: Any, claim: Any, write: Write, outcome: Any
) -> None:
    build_id = await make_build(problems=25_000, n=8, shard_samples=200_000)
    async with database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == build_id))
    lease = await claim(shard_id)
    rows = [outcome(index // 8, index % 8, try_=0) for index in range(200_000)]
    for lo in range(0, len(rows), 3_000):  # each flush tells the last thousand rows of the one before again
        await write(lease, *rows[max(0, lo - 1_000) : lo + 3_000])
    async with database.begin() as session:
        assert await missing(session, lease) == []
    await counters_equal_rows(database, build_id)
