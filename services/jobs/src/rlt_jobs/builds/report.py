"""The report of a build: why samples failed, where they were cut off, how rewards spread.

A fixed number of aggregates, each over one build's rows. Failures are counted in full. Of a build of more than
`WHOLE` samples, the spreads (deciles, quantiles, flags) are taken from evenly spaced problems: `share` says how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import psycopg
from sqlalchemy import Row, exc, text
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import Timeout
from rlt_client.schemas.builds import BuildReport, Decile, Reason
from rlt_jobs.builds import repository
from rlt_jobs.builds.models import Build
from rlt_jobs.builds.service import BuildService
from rlt_jobs.database import Database

__all__ = ["Findings", "Reports", "find"]

WHOLE: Final = 1_000_000  # samples that every spread is taken from: some seconds of one core
STATEMENT_SECONDS: Final = 30  # a report is read by a person, and the database has other work
SORT_MB: Final = 64  # a million rows of a few numbers are sorted in memory
MOST_REASONS: Final = 100
EXAMPLES: Final = 3

QUANTILES: Final = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


@dataclass(frozen=True, slots=True)
class Findings:
    share: float
    """Of the problems, those that deciles, quantiles and flags were taken from."""
    generation: list[Reason]
    scoring: list[Reason]
    flags: dict[str, int]
    deciles: list[Decile]
    rewards: dict[str, float]
    completion_tokens: dict[str, float]


async def find(session: AsyncSession, build: Build) -> Findings:
    """What the rows of a build say.

    Raises:
        Timeout: the database was too busy to say it within `STATEMENT_SECONDS` a question.
    """
    await session.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'"))
    await session.execute(text(f"SET LOCAL work_mem = '{SORT_MB}MB'"))
    step = max(1, -(-build.problems * build.n // WHOLE))
    ids = {"build": build.data_id, "scorer": build.scorer_id, "n": build.n, "end": build.problems, "step": step}
    try:
        return Findings(
            share=1 / step,
            generation=_reasons(await _rows(session, _FAILED, ids)),
            scoring=_reasons(await _rows(session, _UNSCORED, ids)),
            flags={row.flag: row.total for row in await _rows(session, _flags(step), ids)},
            deciles=[Decile.model_validate(row._mapping) for row in await _rows(session, _deciles(step), ids)],
            rewards=_spread(await _rows(session, _rewards(step), ids)),
            completion_tokens=_spread(await _rows(session, _lengths(step), ids)),
        )
    except exc.OperationalError as error:
        if isinstance(error.orig, psycopg.errors.QueryCanceled):
            detail = f"the database did not finish within {STATEMENT_SECONDS} s; try again when less runs"
            raise Timeout(detail, type="report_timeout") from error
        raise


async def _rows(session: AsyncSession, query: str, ids: Mapping[str, Any]) -> Sequence[Row[Any]]:
    return (await session.execute(text(query), dict(ids))).all()


def _examples(table: str) -> str:
    """The first failing sample of each residue class: single numbers, where an array of all would have to be sorted."""
    key = f"{table}.problem::bigint * :n + {table}.sample_idx"
    return ", ".join(f"min({key}) FILTER (WHERE ({key}) % {EXAMPLES} = {part})" for part in range(EXAMPLES))


_FAILED = f"""
SELECT s.gen_status::text AS status, s.gen_reason AS reason, count(*) AS total,
    ARRAY[{_examples("s")}] AS firsts, :n AS n
FROM samples s WHERE s.build_id = :build AND s.gen_status <> 'complete'
GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT {MOST_REASONS}"""  # noqa: S608 our own names
_UNSCORED = f"""
SELECT c.status::text AS status, c.reason AS reason, count(*) AS total,
    ARRAY[{_examples("c")}] AS firsts, :n AS n
FROM scores c
WHERE c.build_id = :build AND c.scorer_id = :scorer AND c.reward IS NULL AND c.status = 'score_error'
GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT {MOST_REASONS}"""  # noqa: S608 our own names


def _reasons(rows: Sequence[Row[Any]]) -> list[Reason]:
    return [
        Reason(
            status=row.status,
            reason=row.reason,
            count=row.total,
            examples=[divmod(first, row.n) for first in sorted(filter(lambda each: each is not None, row.firsts))],
        )
        for row in rows
    ]


def _of(table: str, step: int) -> str:
    """A table's rows of this build, or of every `step`-th problem of it, found by the primary key."""
    if step == 1:
        return f"{table} t WHERE t.build_id = :build"
    picked = "generate_series(0, CAST(:end AS int) - 1, CAST(:step AS int)) AS picked(problem)"
    return f"{picked} JOIN {table} t ON t.build_id = :build AND t.problem = picked.problem WHERE true"


def _flags(step: int) -> str:
    """A flag that teacher and reward server both gave a sample counts once."""
    flagged = "SELECT t.problem, t.sample_idx, unnest(t.flags) AS flag FROM"
    return f"""
    SELECT flag, count(*) AS total FROM (
        {flagged} {_of("samples", step)} AND t.flags <> '{{}}'
        UNION
        {flagged} {_of("scores", step)} AND t.scorer_id = :scorer AND t.flags <> '{{}}'
    ) found GROUP BY flag ORDER BY 2 DESC, 1"""  # noqa: S608 our own names


def _deciles(step: int) -> str:
    return f"""
    SELECT max(size) AS longest, coalesce(sum(samples), 0)::bigint AS samples,
        coalesce(sum(truncated), 0)::bigint AS truncated, coalesce(sum(complete), 0)::bigint AS complete
    FROM (
        SELECT idx, char_length(question) + char_length(answer) AS size,
            ntile(10) OVER (ORDER BY char_length(question) + char_length(answer), idx) AS tenth
        FROM problems WHERE build_id = :build {"" if step == 1 else "AND idx % :step = 0"}
    ) sized LEFT JOIN (
        SELECT t.problem, count(*) AS samples, count(*) FILTER (WHERE t.gen_status = 'truncated') AS truncated,
            count(*) FILTER (WHERE t.gen_status = 'complete') AS complete
        FROM {_of("samples", step)} GROUP BY t.problem
    ) ended ON ended.problem = sized.idx
    GROUP BY tenth ORDER BY tenth"""  # noqa: S608 our own names


_AT = f"ARRAY[{', '.join(map(str, QUANTILES.values()))}]::float8[]"


def _rewards(step: int) -> str:
    scored = f"{_of('scores', step)} AND t.scorer_id = :scorer AND t.reward IS NOT NULL"
    return f"""
    SELECT min(reward), percentile_disc({_AT}) WITHIN GROUP (ORDER BY reward) AS quantiles, max(reward),
        avg(reward) AS mean,
        (SELECT avg(best) FROM (SELECT max(t.reward) AS best FROM {scored} GROUP BY t.problem) b) AS best_mean
    FROM (SELECT t.reward FROM {scored}) r"""  # noqa: S608 our own names


def _lengths(step: int) -> str:
    written = f"{_of('samples', step)} AND t.completion_tokens > 0"
    return f"""
    SELECT min(tokens), percentile_disc({_AT}) WITHIN GROUP (ORDER BY tokens) AS quantiles, max(tokens),
        avg(tokens) AS mean
    FROM (SELECT t.completion_tokens AS tokens FROM {written}) r"""  # noqa: S608 our own names


def _spread(rows: Sequence[Row[Any]]) -> dict[str, float]:
    """min, quantiles that are values of samples, max, mean; empty where there is nothing."""
    (row,) = rows
    if row.quantiles is None:
        return {}
    found = dict(row._mapping)
    quantiles = zip(QUANTILES, found.pop("quantiles"), strict=True)
    ends = {"min": found.pop("min"), **dict(quantiles), "max": found.pop("max")}
    return {name: float(value) for name, value in {**ends, **found}.items()}


class Reports:
    def __init__(self, database: Database, builds: BuildService) -> None:
        self._database = database
        self._builds = builds

    async def report(self, owner: str, build_id: int) -> BuildReport:
        """Raises `NotFound`, and `Timeout` where the database is too busy."""
        counts = (await self._builds.get(owner, build_id)).counts
        async with self._database.begin() as session:
            found = await find(session, await repository.find_build(session, build_id, owner))
        return BuildReport(build=build_id, counts=counts, **asdict(found))
