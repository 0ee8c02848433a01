"""Builds of millions of samples, written by the database itself: rows as of a build that has ended."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from jobs_bench.world import OWNER
from rlt_jobs.builds.models import Sample, Score
from rlt_jobs.builds.repository import problems_of_shard

__all__ = ["N", "add", "analyze", "open_shards"]

N: Final = 8

_BUILD: Final = """
WITH d AS (
    INSERT INTO datasets (owner, name) VALUES (:owner, 'large') ON CONFLICT (owner, name) DO UPDATE SET name = 'large'
    RETURNING id
)
INSERT INTO builds (dataset_id, owner, kind, state, n, spec, spec_hash, request_hash, problems, scorer_id, started_at)
SELECT d.id, :owner, 'generate', CAST(:state AS build_state), :n, '{}', '', '', :problems, :scorer, now() FROM d
RETURNING id"""
_SCORER: Final = """
INSERT INTO scorers (hash, student, student_revision, format_name, format_hash, student_temperature)
VALUES ('bench', 'student', 'r', 'mini', 'f', 0.7) ON CONFLICT (hash) DO UPDATE SET student = 'student' RETURNING id"""
_SHARDS: Final = """
INSERT INTO shards (build_id, lo, hi, total, state, complete, truncated, malformed, engine_error, scored, score_error)
SELECT :build, lo, least(lo + :step, :problems), 8 * :step, CAST(:state AS shard_state),
    7 * :step, :step / 2, :step / 4, :step / 4, 7 * :step, :step / 8
FROM generate_series(0, :problems - 1, :step) lo"""
# Of a hundred samples 95 are complete; rewards are spread as a sum of chances, lengths as its power.
_SAMPLES: Final = """
INSERT INTO samples (build_id, problem, sample_idx, try, gen_status, finish_reason, policy_revision, prompt_tokens,
    completion_tokens, request_key)
SELECT :build, problem, sample_idx, 0,
    CAST(CASE WHEN chance < 95 THEN 'complete' WHEN chance < 98 THEN 'truncated' WHEN chance < 99 THEN 'malformed'
        ELSE 'engine_error' END AS gen_status),
    'stop', 'sha256:5e', 180, 100 + (power(random(), 2) * 4000)::int, sha256(int8send(problem * 8 + sample_idx))
FROM (
    SELECT problem, sample_idx, (problem * 7 + sample_idx * 13) % 100 AS chance
    FROM generate_series(CAST(:lo AS bigint), :hi - 1) problem, generate_series(0, 7) sample_idx
) rows"""
_SCORES: Final = """
INSERT INTO scores (build_id, problem, sample_idx, scorer_id, status, reward, ss_mean, ss_min, ss_sum, kl_mean, kl_max,
    format, n_answer, n_think)
SELECT :build, problem, sample_idx, :scorer, 'scored', r, r, 2 * r, 40 * r, 0.1, 1.5, 1, 40, 500
FROM (
    SELECT problem, sample_idx, -(random() + random() + random()) AS r
    FROM generate_series(CAST(:lo AS bigint), :hi - 1) problem, generate_series(0, 7) sample_idx
    WHERE (problem * 7 + sample_idx * 13) % 100 < 95
) rows"""
# One in a hundred is a truncated one that the scorer refused.
_ERRORS: Final = """
INSERT INTO scores (build_id, problem, sample_idx, scorer_id, gen_status, status, reason)
SELECT :build, problem, sample_idx, :scorer, 'truncated', 'score_error', 'too_long'
FROM generate_series(CAST(:lo AS bigint), :hi - 1) problem, generate_series(0, 7) sample_idx
WHERE (problem * 7 + sample_idx * 13) % 100 = 95"""
STEP: Final = 100_000  # problems a transaction


def add(url: str, sizes: list[int], *, state: str = "done") -> list[int]:
    """Builds of so many problems × 8 samples. Indexes but for the primary keys are made behind the rows."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    indexes = [index for table in (Sample, Score) for index in table.__table__.indexes]  # type: ignore[attr-defined]
    with engine.connect() as connection:
        for statement in ("ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()"):  # `analyze` says when
            connection.execute(text(statement))
        for index in indexes:
            index.drop(connection)
        builds = [_add(connection, problems, state) for problems in sizes]
        connection.execute(text("SET maintenance_work_mem = '512MB'"))
        for index in indexes:
            index.create(connection)
    engine.dispose()
    return builds


def _add(connection: Connection, problems: int, state: str) -> int:
    scorer = connection.scalar(text(_SCORER))
    values = {"owner": OWNER, "n": N, "problems": problems, "scorer": scorer, "state": state}
    build: int | None = connection.scalar(text(_BUILD), values)
    assert build is not None
    open_shards(connection, build, problems, state="done", step=problems_of_shard(problems, N, 256))
    for lo in range(0, problems, STEP):
        part = {"build": build, "lo": lo, "hi": min(lo + STEP, problems)}
        connection.execute(text(_SAMPLES), part)
        for scores in (_SCORES, _ERRORS):
            connection.execute(text(scores), {**part, "scorer": scorer})
    return build


def open_shards(connection: Connection, build: int, problems: int, *, state: str, step: int = 32) -> None:
    """Shards of `step` problems each."""
    connection.execute(text(_SHARDS), {"build": build, "problems": problems, "state": state, "step": step})


def analyze(url: str) -> None:
    """What autovacuum does when it has come round."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()
