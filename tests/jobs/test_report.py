"""The report of a build: every failure with its reason, where texts were cut off, how rewards spread."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import select, text

from rlt_client.errors import Timeout
from rlt_client.schemas.common import GenStatus
from rlt_jobs.builds import report
from rlt_jobs.builds.models import Build, Scorer
from rlt_jobs.builds.report import Findings, find
from rlt_jobs.database import Database

pytestmark = pytest.mark.asyncio(loop_scope="module")

MakeBuild = Callable[..., Awaitable[int]]

# Sample k of a build ends by its number, so that every figure can be worked out by hand.
SAMPLES = text("""
INSERT INTO samples (build_id, problem, sample_idx, try, gen_status, gen_reason, completion_tokens, request_key, flags)
SELECT :build, p, s, 0,
    CAST(CASE WHEN p >= :cut THEN 'truncated' WHEN k % 10 = 3 THEN 'engine_error' ELSE 'complete' END AS gen_status),
    CASE WHEN p < :cut AND k % 10 = 3 THEN (ARRAY['timeout', 'internal_error'])[1 + k / 10 % 2] END,
    CASE WHEN p < :cut AND k % 10 = 3 THEN 0 ELSE 100 + k END, ''::bytea,
    CASE WHEN k % 5 = 0 THEN ARRAY['repetition'] ELSE ARRAY[]::text[] END
FROM generate_series(0, :problems - 1) p, generate_series(0, :n - 1) s, LATERAL (SELECT p * :n + s AS k) numbered""")
SCORES = text("""
INSERT INTO scores (build_id, problem, sample_idx, scorer_id, status, reason, reward, flags)
SELECT build_id, problem, sample_idx, :scorer,
    CAST(CASE WHEN sample_idx = 1 AND problem < 4 THEN 'score_error' ELSE 'scored' END AS score_status),
    CASE WHEN sample_idx = 1 AND problem < 4 THEN 'too_long' END,
    CASE WHEN sample_idx = 1 AND problem < 4 THEN NULL ELSE -completion_tokens END,
    CASE WHEN completion_tokens % 10 = 0 THEN ARRAY['repetition', 'stray_tags'] ELSE ARRAY[]::text[] END
FROM samples WHERE build_id = :build AND gen_status = 'complete'""")
LENGTHS = text("UPDATE problems SET question = repeat('x', 10 + idx % 2000) WHERE build_id = :build")


@pytest.fixture
async def filled(database: Database, make_build: MakeBuild) -> Callable[..., Awaitable[Build]]:
    async def fill(*, problems: int, n: int, cut: int) -> Build:
        build_id = await make_build(problems=1, n=n)
        async with database.begin() as session:
            scorer = Scorer(
                hash=f"s{build_id}".encode(), student="s", student_revision="r", format_name="f", format_hash="h",
                student_temperature=1.0, **_others(),
            )  # fmt: skip
            session.add(scorer)
            build = await session.get_one(Build, build_id)
            await session.flush()
            build.problems, build.scorer_id = problems, scorer.id
            more = text("""INSERT INTO problems (build_id, idx, question_hash, question, answer)
                SELECT :build, i, ''::bytea, 'q', '12345' FROM generate_series(1, :problems - 1) i""")
            ids = {"build": build_id, "problems": problems}
            await session.execute(more, ids)
            await session.execute(LENGTHS, {"build": build_id})
            await session.execute(SAMPLES, {**ids, "n": n, "cut": cut})
            await session.execute(SCORES, {"build": build_id, "scorer": scorer.id})
        return build

    return fill


def _others() -> dict[str, None]:
    return dict.fromkeys(("teacher_source", "teacher_revision", "kl", "teacher_temperature", "dtype", "engine"))


async def found(database: Database, build: Build) -> Findings:
    async with database.begin() as session:
        return await find(session, await session.get_one(Build, build.id))


async def test_failures_are_counted_by_reason_with_examples(database: Database, filled) -> None:
    """20 problems × 4: k = 4p + s; the problems from 15 on are cut off; of the 60 others 3, 13, …, 53 failed."""
    made = await found(database, await filled(problems=20, n=4, cut=15))
    assert [(each.status, each.reason, each.count, each.examples) for each in made.generation] == [
        ("truncated", None, 20, [(15, 0), (15, 1), (15, 2)]),
        ("engine_error", "internal_error", 3, [(3, 1), (8, 1), (13, 1)]),  # 13, 33, 53
        ("engine_error", "timeout", 3, [(0, 3), (5, 3), (10, 3)]),  # 3, 23, 43
    ]
    assert [(each.status, each.reason, each.count) for each in made.scoring] == [("score_error", "too_long", 3)]
    assert sorted(made.scoring[0].examples) == made.scoring[0].examples
    assert (made.scoring[0].examples[0], made.share) == ((0, 1), 1.0)


async def test_a_flag_of_both_servers_counts_once(database: Database, filled) -> None:
    """The teacher flags k = 0, 5, …, 75: 16. The reward server flags complete ones with 100 + k divisible by 10: 6."""
    made = await found(database, await filled(problems=20, n=4, cut=15))
    assert made.flags == {"repetition": 16, "stray_tags": 6}


async def test_deciles_are_of_problems_by_their_length(database: Database, filled) -> None:
    """Problem p has 10 + p + 5 characters, two problems a decile; from 15 on they are cut off."""
    made = await found(database, await filled(problems=20, n=4, cut=15))
    assert [each.longest for each in made.deciles] == [16, 18, 20, 22, 24, 26, 28, 30, 32, 34]
    assert [each.samples for each in made.deciles] == [8] * 10
    assert [each.truncated for each in made.deciles] == [0] * 7 + [4, 8, 8]


async def test_quantiles_are_values_of_samples(database: Database, filled) -> None:
    """54 complete samples, 3 of them without a score: the rewards are −(100 + k) of the other 51."""
    made = await found(database, await filled(problems=20, n=4, cut=15))
    left = [k for k in range(60) if k % 10 != 3 and not (k % 4 == 1 and k < 16)]
    rewards = sorted(-(100.0 + k) for k in left)
    at = {name: rewards[math.ceil(len(rewards) * q) - 1] for name, q in report.QUANTILES.items()}
    best = [max(-(100.0 + k) for k in left if k // 4 == p) for p in range(15)]
    assert made.rewards == {
        "min": rewards[0], **at, "max": rewards[-1],
        "mean": pytest.approx(sum(rewards) / 51), "best_mean": pytest.approx(sum(best) / 15),
    }  # fmt: skip
    tokens = sorted(100 + k for k in range(80) if k >= 60 or k % 10 != 3)
    assert (made.completion_tokens["min"], made.completion_tokens["max"]) == (tokens[0], tokens[-1])
    assert made.completion_tokens["mean"] == pytest.approx(sum(tokens) / len(tokens))
    assert "best_mean" not in made.completion_tokens


async def test_a_build_without_samples_has_an_empty_report(database: Database, make_build: MakeBuild) -> None:
    async with database.begin() as session:
        build = (await session.scalars(select(Build).where(Build.id == await make_build(problems=3)))).one()
    made = await found(database, build)
    assert (made.generation, made.scoring, made.flags, made.rewards, made.completion_tokens) == ([], [], {}, {}, {})
    assert [each.samples for each in made.deciles] == [0, 0, 0]


async def test_of_a_huge_build_spreads_are_taken_from_evenly_spaced_problems(
    database: Database, filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "WHOLE", 40)
    made = await found(database, await filled(problems=20, n=4, cut=15))
    assert made.share == 0.5
    assert [each.longest for each in made.deciles] == [
        12,
        *(15 + p for p in range(2, 20, 2)),
    ]  # the first's answer is A0
    assert sum(each.samples for each in made.deciles) == 40
    assert made.generation[0].count == 20  # failures are counted in full all the same
    assert made.completion_tokens["max"] == 100 + 18 * 4 + 3


async def test_a_database_that_is_too_busy_is_said_to_be(
    database: Database, filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = await filled(problems=20, n=4, cut=15)
    monkeypatch.setattr(report, "_FAILED", "SELECT pg_sleep(120)")
    monkeypatch.setattr(report, "STATEMENT_SECONDS", 0.05)
    began = time.monotonic()
    with pytest.raises(Timeout, match="did not finish"):
        await found(database, build)
    assert time.monotonic() - began < 120  # it was not waited for


@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute, most of it for the rows
async def test_a_million_samples_take_seconds(database: Database, filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks at a row for each row takes hours: the database ends it."""
    monkeypatch.setattr(report, "STATEMENT_SECONDS", 120)  # a question takes one: a busy machine
    build = await filled(problems=125_000, n=8, cut=100_000)
    async with database.begin() as session:
        await session.execute(text("ANALYZE samples, scores, problems"))
    made = await found(database, build)
    assert sum(each.count for each in made.generation if each.status == GenStatus.truncated) == 200_000
