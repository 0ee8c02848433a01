"""What must hold among the rows of a build, checked in one snapshot of the database: no file is read.

Each rule is a query for what breaks it, and the words for a row of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.builds import BuildState
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds.models import Build, Sample, Score
from rlt_jobs.builds.repository import totals
from rlt_jobs.database import Database

__all__ = ["check_build", "check_orphans"]

BATCH = 1_000  # findings in memory at once


@dataclass(frozen=True, slots=True)
class _Rule:
    broken: str
    """Takes :build, :problems and :n."""
    words: str


_ALWAYS = [
    _Rule(
        """SELECT problem, sample_idx FROM samples WHERE build_id = :build
        AND (problem < 0 OR problem >= :problems OR sample_idx < 0 OR sample_idx >= :n)""",
        "sample {problem}.{sample_idx} is outside its {problems} × {n} samples",
    ),
    _Rule(
        """SELECT s.problem, s.sample_idx FROM samples s LEFT JOIN files f ON f.id = s.file_id
        WHERE s.build_id = :build AND s.file_id IS NOT NULL
        AND (f.build_id IS DISTINCT FROM s.build_id OR s.row IS NULL OR s.row < 0 OR s.row >= f.rows
             OR s.problem < f.lo OR s.problem >= f.hi)""",
        "sample {problem}.{sample_idx} points at no row",
    ),
    _Rule(
        """SELECT s.problem, s.sample_idx FROM samples s WHERE s.build_id = :build
        AND s.gen_status = 'complete' AND s.file_id IS NULL AND NOT EXISTS (
            SELECT FROM spool p
            WHERE p.build_id = :build AND p.problem = s.problem AND p.sample_idx = s.sample_idx)""",
        "sample {problem}.{sample_idx} is complete and has no texts",
    ),
    _Rule(
        """SELECT p.problem, p.sample_idx FROM spool p
        LEFT JOIN samples s ON s.build_id = :build AND s.problem = p.problem AND s.sample_idx = p.sample_idx
        WHERE p.build_id = :build AND (s.problem IS NULL OR s.file_id IS NOT NULL)""",
        "the spool has texts of sample {problem}.{sample_idx}, which is sealed or not there",
    ),
    _Rule(
        """SELECT c.problem, c.sample_idx, c.scorer_id FROM scores c WHERE c.build_id = :build AND NOT EXISTS (
            SELECT FROM samples s
            WHERE s.build_id = :build AND s.problem = c.problem AND s.sample_idx = c.sample_idx)""",
        "scorer {scorer_id} has a score of sample {problem}.{sample_idx}, which is not there",
    ),
    _Rule(
        """SELECT c.problem, c.sample_idx, c.scorer_id FROM scores c
        JOIN samples s ON s.build_id = :build AND s.problem = c.problem AND s.sample_idx = c.sample_idx
        WHERE c.build_id = :build AND c.gen_status <> s.gen_status""",
        "scorer {scorer_id} files sample {problem}.{sample_idx} under another state",
    ),
]
_CUT = [
    _Rule(
        """SELECT count(*) AS found FROM problems WHERE build_id = :build
        HAVING count(*) <> :problems OR min(idx) <> 0 OR max(idx) <> :problems - 1""",
        "it has {found} problems that are not numbered 0 … {problems} − 1",
    ),
    _Rule(
        """SELECT lo, before FROM (
            SELECT lo, lag(hi, 1, 0) OVER (ORDER BY lo) AS before FROM (
                SELECT lo, hi FROM shards WHERE build_id = :build AND try = 0 UNION ALL SELECT :problems, :problems
            ) ranges
        ) found WHERE lo <> before""",
        "its shards leave out, or do twice, the problems between {before} and {lo}",
    ),
]
_MADE = [
    _Rule(
        """SELECT count(*) AS found FROM samples WHERE build_id = :build
        HAVING count(*) <> :problems * CAST(:n AS bigint)""",
        "it is done and has {found} samples instead of {problems} × {n}",
    ),
    _Rule(
        "SELECT count(*) AS found FROM spool WHERE build_id = :build HAVING count(*) > 0",
        "it is done and {found} texts are not sealed",
    ),
]
_DONE = [
    _Rule(
        "SELECT id, state FROM shards WHERE build_id = :build AND state <> 'done'",
        "it is done and its shard {id} is {state}",
    )
]


async def check_build(database: Database, build_id: int) -> AsyncIterator[str]:
    """What is wrong with one build that has not been deleted. A snapshot: it may be running."""
    async with database.begin() as session:
        await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        build = await session.get(Build, build_id)
        if build is None or build.deleted_at is not None:
            return
        given = {"build": build.id, "problems": build.problems, "n": build.n}
        for rule in _rules(build):
            rows = await session.stream(text(rule.broken), given, execution_options={"yield_per": BATCH})
            async for row in rows.mappings():
                yield f"build {build.id}: {rule.words.format(**given, **row)}"
        if build.of_build_id is None:
            for finding in await _miscounted(session, build):
                yield f"build {build.id}: {finding}"


def _rules(build: Build) -> Iterator[_Rule]:
    done, own = build.state is BuildState.done, build.of_build_id is None
    yield from _DONE if done else ()
    if own:
        yield from _ALWAYS
        yield from _CUT if build.started_at is not None else ()
        yield from _MADE if done else ()


async def _miscounted(session: AsyncSession, build: Build) -> list[str]:
    """Counters are sums of what the shards counted; the rows are what is there."""
    kept = (await totals(session, [build.id])).get(build.id)
    if kept is None:
        return []
    counted: dict[str, int] = {**kept.gen, "prompt_tokens": kept.prompt_tokens}
    counted |= {"completion_tokens": kept.completion_tokens}
    there = await _sampled(session, build)
    if not await _scored_by_others(session, build):
        counted |= {"scored": kept.scored, "score_error": kept.score_error}
        there |= await _scored(session, build)
    return [
        f"its shards count {number} {name}, and there are {there.get(name, 0)}"
        for name, number in counted.items()
        if number != there.get(name, 0)
    ]


async def _sampled(session: AsyncSession, build: Build) -> dict[str, int]:
    tokens = (func.sum(Sample.prompt_tokens), func.sum(Sample.completion_tokens))
    query = select(Sample.gen_status, func.count(), *tokens).where(Sample.build_id == build.id)
    rows = (await session.execute(query.group_by(Sample.gen_status))).all()
    sums = {"prompt_tokens": sum(row[2] for row in rows), "completion_tokens": sum(row[3] for row in rows)}
    return {status.value: 0 for status in GenStatus} | {row[0].value: row[1] for row in rows} | sums


async def _scored(session: AsyncSession, build: Build) -> dict[str, int]:
    mine = (Score.build_id == build.id, Score.scorer_id == build.scorer_id)
    query = select(Score.status, func.count()).where(*mine).group_by(Score.status)
    counts: dict[Any, int] = {row[0]: row[1] for row in await session.execute(query)}
    return {status.value: counts.get(status, 0) for status in (ScoreStatus.scored, ScoreStatus.score_error)}


async def _scored_by_others(session: AsyncSession, build: Build) -> bool:
    """Whether another build has filed scores of the same scorer, which that one counts."""
    others = exists().where(Build.of_build_id == build.id, Build.scorer_id == build.scorer_id)
    return build.scorer_id is None or bool(await session.scalar(select(others)))


async def check_orphans(database: Database) -> AsyncIterator[str]:
    """Rows of builds that do not exist: these tables have no foreign key."""
    for table in ("samples", "scores", "spool"):
        query = f"""SELECT DISTINCT t.build_id AS id FROM {table} t
            WHERE NOT EXISTS (SELECT FROM builds b WHERE b.id = t.build_id)"""  # noqa: S608 our own names
        async with database.begin() as session:
            for row in await session.execute(text(query)):
                yield f"build {row.id} does not exist and has rows in {table}"
