"""Outcomes of samples that may have rows already: what replaces what is decided in the database, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds import rows
from rlt_jobs.builds.outcomes import RETRIED, Outcome, compressor
from rlt_jobs.database import copy_rows
from rlt_jobs.leases import Claimed

__all__ = ["merge"]

_SCORED = {f"score_{name}": type for name, type in rows.SCORED.items()}
_WHOLE: rows.Columns = {"problem": "int4", "sample_idx": "int2", **rows.OUTCOME, **_SCORED, "texts": "bytea"}
_ENUMS = {"gen_status": "gen_status", "score_status": "score_status"}
_DEFINED = ", ".join(f"{name} {_ENUMS.get(name, type)}" for name, type in _WHOLE.items())
_SAMPLE = ("problem", "sample_idx", *rows.OUTCOME)

ANALYZED = 5_000  # rows from which on the planner must know how many they are, or it joins them one by one

# Temporary tables live as long as the connection, so that a merge makes no catalogue rows.
_ROWS = text(f"CREATE TEMPORARY TABLE IF NOT EXISTS flush_rows ({_DEFINED}) ON COMMIT DELETE ROWS")
_CHANGED = text("""
CREATE TEMPORARY TABLE IF NOT EXISTS flush_changed (
    problem int, sample_idx smallint, new_status gen_status, old_status gen_status, old_score score_status,
    prompt_tokens int, completion_tokens int
) ON COMMIT DELETE ROWS""")

_again = ", ".join(f"'{status.value}'" for status in RETRIED)
_UPSERT = text(f"""
WITH old AS (
    SELECT s.problem, s.sample_idx, s.gen_status, s.prompt_tokens, s.completion_tokens, c.status AS score_status
    FROM flush_rows f
    JOIN samples s ON s.build_id = :build AND s.problem = f.problem AND s.sample_idx = f.sample_idx
    LEFT JOIN scores c ON c.build_id = :build AND c.problem = f.problem AND c.sample_idx = f.sample_idx
        AND c.scorer_id = (SELECT scorer_id FROM builds WHERE id = :build)
), changed AS (
    INSERT INTO samples AS s (build_id, {", ".join(_SAMPLE)})
    SELECT :build, {", ".join(_SAMPLE)} FROM flush_rows ORDER BY problem, sample_idx
    ON CONFLICT (build_id, problem, sample_idx) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in rows.OUTCOME)}, file_id = NULL, row = NULL
    WHERE excluded.try > s.try OR (excluded.try = s.try AND s.gen_status IN ({_again}))
    RETURNING problem, sample_idx, gen_status, prompt_tokens, completion_tokens
)
INSERT INTO flush_changed
SELECT c.problem, c.sample_idx, c.gen_status, o.gen_status, o.score_status,
    c.prompt_tokens - coalesce(o.prompt_tokens, 0), c.completion_tokens - coalesce(o.completion_tokens, 0)
FROM changed c LEFT JOIN old o ON o.problem = c.problem AND o.sample_idx = c.sample_idx""")  # noqa: S608 our own names

_FORGET = [
    text(f"""
    DELETE FROM {table} t USING flush_changed c
    WHERE c.old_status IS NOT NULL AND t.build_id = :build AND t.problem = c.problem AND t.sample_idx = c.sample_idx
    """)  # noqa: S608 our own names
    for table in ("scores", "spool")
]
_SCORES = text(f"""
INSERT INTO scores (build_id, problem, sample_idx, scorer_id, gen_status, {", ".join(rows.SCORED)})
SELECT :build, f.problem, f.sample_idx, :scorer, f.gen_status, {", ".join(f"f.{name}" for name in _SCORED)}
FROM flush_rows f JOIN flush_changed c ON c.problem = f.problem AND c.sample_idx = f.sample_idx
WHERE f.score_status IS NOT NULL""")  # noqa: S608 our own names
_UNSCORED = text("UPDATE flush_rows SET score_status = NULL")  # of nobody: not written, so not counted
_SPOOL = text("""
INSERT INTO spool (build_id, problem, sample_idx, shard_id, texts)
SELECT :build, f.problem, f.sample_idx, :shard, f.texts
FROM flush_rows f JOIN flush_changed c ON c.problem = f.problem AND c.sample_idx = f.sample_idx
WHERE f.texts IS NOT NULL""")


def _counters() -> Iterator[tuple[str, str]]:
    """Each counter of a shard and the change that `flush_changed` makes to it."""
    for status in GenStatus:
        new, old = (f"count(*) FILTER (WHERE c.{side}_status = '{status.value}')" for side in ("new", "old"))
        yield status.value, f"{new} - {old}"
    for score in (ScoreStatus.scored, ScoreStatus.score_error):
        new = f"count(*) FILTER (WHERE f.score_status = '{score.value}')"
        old = f"count(*) FILTER (WHERE c.old_score = '{score.value}')"
        yield score.value, f"{new} - {old}"
    for name in ("prompt_tokens", "completion_tokens"):
        yield name, f"coalesce(sum(c.{name}), 0)"


_COUNT = text(f"""
UPDATE shards s SET
    {", ".join(f"{name} = s.{name} + d.{name}" for name, _ in _counters())},
    barren = CASE WHEN d.changed > 0 THEN 0 ELSE s.barren END,
    samples_per_s = d.changed / :seconds,
    tokens_per_s = d.completion_tokens / :seconds
FROM (
    SELECT count(*) AS changed, {", ".join(f"{change} AS {name}" for name, change in _counters())}
    FROM flush_changed c JOIN flush_rows f ON f.problem = c.problem AND f.sample_idx = c.sample_idx
) d
WHERE s.id = :shard
RETURNING d.changed""")  # noqa: S608 our own names


async def merge(
    session: AsyncSession, lease: Claimed, outcomes: Sequence[Outcome], *, scorer_id: int | None, seconds: float
) -> int:
    """Write what replaces what is there. Returns how many rows really changed.

    The shard is held, and no sample comes twice.
    """
    await session.execute(_ROWS)
    await session.execute(_CHANGED)
    compress = compressor()
    await copy_rows(session, "flush_rows", _WHOLE, (rows.whole(outcome, compress) for outcome in outcomes))
    ids = {"build": lease.build_id, "shard": lease.shard_id}
    many = len(outcomes) >= ANALYZED
    if many:
        await session.execute(text("ANALYZE flush_rows"))
    await session.execute(_UPSERT, ids)
    if many:
        await session.execute(text("ANALYZE flush_changed"))
    if scorer_id is None:
        await session.execute(_UNSCORED)
    for forget in _FORGET:
        await session.execute(forget, ids)
    if scorer_id is not None:
        await session.execute(_SCORES, {**ids, "scorer": scorer_id})
    await session.execute(_SPOOL, ids)
    changed = await session.scalar(_COUNT, {**ids, "seconds": seconds})
    return int(changed or 0)
