"""Asking again for samples that failed: new shards over them alone, one try higher, and the build runs on.

What they replace stays in the versions that hold it. At the end another version is published, whose parent is the
build's last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import Conflict
from rlt_client.schemas import builds as wire
from rlt_client.schemas.builds import BuildKind, BuildState, RetryRequest
from rlt_client.schemas.common import GenStatus
from rlt_jobs.builds import repository
from rlt_jobs.builds.lifecycle import ENDED, FRESH, expect_ended, revive
from rlt_jobs.builds.models import Build, Event, Scorer, Shard
from rlt_jobs.builds.outcomes import RETRIED
from rlt_jobs.builds.quotas import admit_retry
from rlt_jobs.builds.service import BuildService
from rlt_jobs.database import Database, rows_changed
from rlt_jobs.ringing import ring_shards
from rlt_jobs.settings import Settings

__all__ = ["Retries", "retry"]

_INTO = 'INSERT INTO shards (build_id, lo, hi, try, "only", score_only, max_tokens, total)'

# Failed samples in a row, wherever they lie, until they are enough for a shard. Problems are never divided.
_CUT = """
SELECT :build, min(problem), max(problem) + 1, :try, CAST(:only AS gen_status[]), :score_only,
    CAST(:max_tokens AS int), sum(count)
FROM (
    SELECT problem, count, ((sum(count) OVER (ORDER BY problem)) - count)::bigint / :size AS part
    FROM (SELECT s.problem, count(*) AS count FROM {failed} GROUP BY s.problem) failed
) cut GROUP BY part ORDER BY part"""
# Dead shards go on, and ask for these by themselves.
_THEIRS = """
    AND NOT EXISTS (
        SELECT FROM shards d
        WHERE d.build_id = :build AND d.state = 'dead' AND d.score_only = :score_only
            AND s.problem >= d.lo AND s.problem < d.hi
            AND (d.score_only OR (s.try = d.try AND s.gen_status = ANY(CAST(:retried AS gen_status[])))
                OR (s.try < d.try AND s.gen_status = ANY(d."only")))
    )"""
_GENERATED = f"""samples s
    WHERE s.build_id = :data AND s.gen_status = ANY(CAST(:only AS gen_status[])){_THEIRS}"""
# What was refused before anything told who scores has no score at all.
_UNSCORED = f"""samples s LEFT JOIN scores c ON c.build_id = :data AND c.problem = s.problem
        AND c.sample_idx = s.sample_idx AND c.scorer_id = CAST(:scorer AS bigint)
    WHERE s.build_id = :data AND s.gen_status = ANY(CAST(:only AS gen_status[]))
    AND (c.status IS NULL OR c.status = 'score_error'){_THEIRS}"""

_AGAIN, _SCORE_AGAIN = (text(f"{_INTO} {_CUT.format(failed=failed)}") for failed in (_GENERATED, _UNSCORED))


async def retry(session: AsyncSession, build: Build, request: RetryRequest, *, shard_samples: int) -> None:
    """`build` is locked and set running again.

    Raises:
        Conflict: it has not ended, was cancelled, is being read by another build, or no sample failed in this way and
            no shard is dead.
    """
    await _check(session, build)
    try_ = 1 + (await session.scalar(select(func.max(Shard.try_)).where(Shard.build_id == build.id)) or 0)
    retried = [status.value for status in RETRIED]
    size = {"build": build.id, "data": build.data_id, "try": try_, "size": shard_samples, "retried": retried}
    made = 0
    if build.kind is not BuildKind.rescore:
        made += await _generate(session, size, request)
    if request.score_errors:
        made += await _score(session, size, build, request)
    if not made + await revive(session, build):
        raise Conflict(_nothing(build, request), type="nothing_to_retry")
    await _go_on(session, build, request)


async def _check(session: AsyncSession, build: Build) -> None:
    if build.kind is BuildKind.rerank:
        raise Conflict("a re-ranking makes no samples; retry the build that made them", type="wrong_state")
    if build.state not in (BuildState.done, BuildState.failed):
        raise Conflict(f"a build that is {build.state} cannot be retried: wait until it is done", type="wrong_state")
    await expect_ended(session, build.of_build_id)
    reads = select(Build.id).where(Build.of_build_id == build.id, Build.state.not_in(ENDED)).limit(1)
    if reader := await session.scalar(reads):
        raise Conflict(f"build {reader} reads the samples of this one; wait until it has ended", type="in_use")


async def _generate(session: AsyncSession, size: dict[str, Any], request: RetryRequest) -> int:
    only = [status.value for status in request.gen_status]
    return await _cut(session, _AGAIN, {**size, "only": only, "score_only": False, "max_tokens": request.max_tokens})


async def _score(session: AsyncSession, size: dict[str, Any], build: Build, request: RetryRequest) -> int:
    """Only complete samples: no other becomes a row. What is asked for again comes with a score of its own."""
    if GenStatus.complete in request.gen_status and build.kind is not BuildKind.rescore:
        return 0
    if build.kind is BuildKind.rescore:
        return await _reopen(session, build)
    await _check_tokens(session, build)
    where = {"only": [GenStatus.complete.value], "score_only": True, "max_tokens": None, "scorer": build.scorer_id}
    return await _cut(session, _SCORE_AGAIN, {**size, **where})


async def _reopen(session: AsyncSession, build: Build) -> int:
    """The shards of a build that only scores count what lies in their ranges, which no other shard may share."""
    failed = (Shard.build_id == build.id, or_(Shard.score_error > 0, Shard.complete < Shard.total))
    return rows_changed(await session.execute(update(Shard).where(*failed).values(**FRESH, score_only=True)))


async def _check_tokens(session: AsyncSession, build: Build) -> None:
    """The KL of all scores of a build is computed from the same log-probs, or they would not be comparable."""
    scorer = await session.get(Scorer, build.scorer_id) if build.scorer_id else None
    if scorer is not None and scorer.teacher_source == "sent" and not build.spec["keep_tokens"]:
        raise Conflict(
            f"build {build.id} was scored with the log-probs that its texts were sampled with, and they were not kept "
            "(keep_tokens); ask for the samples again, or score all of them again with `rescore`",
            type="tokens_not_kept",
        )


async def _cut(session: AsyncSession, statement: Any, values: dict[str, Any]) -> int:
    return rows_changed(await session.execute(statement, values))


def _nothing(build: Build, request: RetryRequest) -> str:
    asked: Sequence[str] = [] if build.kind is BuildKind.rescore else [status.value for status in request.gen_status]
    wanted = [*asked, *(["complete without a score"] if request.score_errors else [])]
    return f"no sample of build {build.id} is {' or '.join(wanted) or 'asked for again: name score_errors'}"


async def _go_on(session: AsyncSession, build: Build, request: RetryRequest) -> None:
    build.state = BuildState.running
    build.error = build.finished_at = None
    build.barren = 0
    asked = request.model_dump_json(exclude_none=True)
    session.add(Event(build_id=build.id, kind="retried", detail=f"asked again: {asked}"))
    await session.flush()
    await ring_shards(session, Shard.build_id == build.id)


class Retries:
    def __init__(self, settings: Settings, database: Database, builds: BuildService) -> None:
        self._settings = settings
        self._database = database
        self._builds = builds

    async def retry(self, owner: str, build_id: int, request: RetryRequest) -> wire.Build:
        """Raises `NotFound`, `Conflict`, and `Forbidden` where the owner's quotas leave no room."""
        async with self._database.begin() as session:
            build = await repository.lock_build(session, build_id, owner)
            await retry(session, build, request, shard_samples=self._settings.shard_samples)
            await admit_retry(session, self._settings, build)
        return await self._builds.get(owner, build_id)
