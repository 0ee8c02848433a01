"""Scoring samples that exist already: of another build, or those of a build's own that could not be scored.

Texts are read from sealed files. Nothing but rows of `scores` is written, filed under the build that made the samples,
and what another build of the same scorer has written meanwhile is as good as one's own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, or_, select, text, tuple_, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.builds import BuildKind
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_client.schemas.reward import RewardItem, TeacherTokens, needs_distributions
from rlt_jobs.builds import repository
from rlt_jobs.builds.models import Build, Problem, Sample, Score, Scorer, Shard
from rlt_jobs.builds.outcomes import Outcome, Scored
from rlt_jobs.builds.sampler import Made, Sampler
from rlt_jobs.builds.spec import Spec
from rlt_jobs.leases import Claimed, hold_shard
from rlt_jobs.store.files import Store
from rlt_jobs.store.models import File
from rlt_jobs.store.traces import Traces

__all__ = ["Rescoring"]

READ_AHEAD: Final = 64  # texts in memory at once: what the client puts into one request
INSERTED: Final = 1_000  # rows a statement: 18 parameters each, of 65,535 at most


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the texts of a sample lie."""

    uri: str
    row: int
    policy_revision: str | None


class Rescoring:
    """The work of one lease that generates nothing. Made by `open`."""

    def __init__(self, store: Store, lease: Claimed, shard: Shard, build: Build, made: Spec, same_format: bool) -> None:
        self._lease = lease
        self._shard = shard
        self._build = build
        self._spec = Spec.model_validate(build.spec)
        self._made = made
        self._same_format = same_format
        self._traces = Traces(store)
        self._reading = asyncio.Lock()  # one row group is in memory
        self._room = asyncio.Semaphore(READ_AHEAD)
        self._places: dict[tuple[int, int], _Place] = {}
        self._asked: set[tuple[int, int]] = set()
        self._problems: dict[int, Problem] = {}

    @classmethod
    async def open(cls, session: AsyncSession, store: Store, lease: Claimed) -> Rescoring | None:
        """None for a shard whose samples are to be made."""
        shard = await session.get_one(Shard, lease.shard_id)
        build = await session.get_one(Build, lease.build_id)
        if build.kind is not BuildKind.rescore and not shard.score_only:
            return None
        data = await session.get_one(Build, build.data_id)
        made = Spec.model_validate(data.spec)
        scorer = await session.get(Scorer, data.scorer_id) if data.scorer_id else None
        asked = build.spec["format"]
        same_format = asked == made.format or (scorer is not None and asked == scorer.format_name)
        return cls(store, lease, shard, build, made, same_format)

    async def todo(self, session: AsyncSession) -> list[tuple[int, int]]:
        """(problem, sample_idx) of complete samples without a score by the build's scorer, in order, each once a lease.

        One alone while nothing has told yet who scores: that scorer may have scored all the others before.
        """
        build = await session.get_one(Build, self._lease.build_id)
        found = (await session.execute(self._wanted(build.scorer_id))).all()
        rows = [row for row in found if (row.problem, row.sample_idx) not in self._asked]
        wanted = rows if build.scorer_id is not None or self._asked else rows[:1]
        places = {(row.problem, row.sample_idx): _Place(row.uri, row.row, row.policy_revision) for row in wanted}
        self._places |= places
        self._problems |= await repository.problems(session, build.data_id, {problem for problem, _ in places})
        return list(places)

    def _wanted(self, scorer_id: int | None) -> Any:
        theirs = and_(
            Score.build_id == Sample.build_id,
            Score.problem == Sample.problem,
            Score.sample_idx == Sample.sample_idx,
            Score.scorer_id == scorer_id,
        )
        lacking: ColumnElement[bool] = Score.problem.is_(None)
        if self._shard.score_only:
            lacking = or_(lacking, Score.status == ScoreStatus.score_error)
        here = (
            Sample.build_id == self._build.data_id,
            Sample.problem >= self._lease.lo,
            Sample.problem < self._lease.hi,
        )
        return (
            select(Sample.problem, Sample.sample_idx, Sample.row, Sample.policy_revision, File.uri)
            .join(File, File.id == Sample.file_id)
            .outerjoin(Score, theirs)
            .where(*here, Sample.gen_status == GenStatus.complete, lacking)
            .order_by(Sample.problem, Sample.sample_idx)
        )

    async def make(self, sampler: Sampler, problem: int, sample_idx: int) -> Made:
        """Raises `Unhealthy` and `Misconfigured`, as `Sampler.make`."""
        self._asked.add((problem, sample_idx))
        place = self._places[problem, sample_idx]
        async with self._room:
            async with self._reading:
                key = (place.uri, place.row)
                trace = (await asyncio.to_thread(self._traces.read, [key]))[key]
            score, scorer = await sampler.score(self._item(self._problems[problem], place, trace))
        outcome = Outcome(problem, sample_idx, self._lease.try_, GenStatus.complete, b"", score=score)
        return Made(outcome, scorer)

    def _item(self, problem: Problem, place: _Place, trace: dict[str, Any]) -> RewardItem:
        """A completion is only one in the format that it was generated in; in another, its explanation is scored."""
        texts = {"question": problem.question, "answer": problem.answer, "system": problem.system}
        if not self._same_format or trace["completion"] is None:
            return RewardItem(**texts, explanation=trace["explanation"])
        return RewardItem(**texts, completion=trace["completion"], teacher=self._tokens(place, trace))

    def _tokens(self, place: _Place, trace: dict[str, Any]) -> TeacherTokens | None:
        if trace["token_ids"] is None or trace["logprobs"] is None or needs_distributions(self._spec.spec):
            return None
        sampling = self._made.sampling.model_dump(include={"temperature", "top_p", "top_k"})
        tokens = {"token_ids": trace["token_ids"], "logprobs": trace["logprobs"]}
        return TeacherTokens(**tokens, **sampling, revision=place.policy_revision)

    async def write(
        self, session: AsyncSession, outcomes: Sequence[Outcome], *, scorer_id: int | None, seconds: float
    ) -> int:
        """Write scores, if the lease is still ours, in place of none or of an error. Returns how many changed.

        What was refused before anything told who scores has no scorer to be filed under, and stays missing.

        Raises:
            LeaseLost: nothing was written.
        """
        await hold_shard(session, self._lease)
        if scorer_id is None:
            return 0
        rows = {(outcome.problem, outcome.sample_idx): self._row(outcome, scorer_id) for outcome in outcomes}
        before = await self._statuses(session, scorer_id, list(rows))
        new = [row for key, row in sorted(rows.items()) if before.get(key) in (None, ScoreStatus.score_error)]
        for start in range(0, len(new), INSERTED):
            await session.execute(_upsert(new[start : start + INSERTED]))
        await self._count(session, new, before, scorer_id, seconds)
        return len(new)

    def _row(self, outcome: Outcome, scorer_id: int) -> dict[str, Any]:
        assert outcome.score is not None
        key = {"build_id": self._build.data_id, "problem": outcome.problem, "sample_idx": outcome.sample_idx}
        return {**key, "scorer_id": scorer_id, **{name: getattr(outcome.score, name) for name in _VALUES}}

    async def _statuses(
        self, session: AsyncSession, scorer_id: int, keys: list[tuple[int, int]]
    ) -> dict[tuple[int, int], ScoreStatus]:
        same = tuple_(Score.problem, Score.sample_idx).in_(keys)
        query = select(Score.problem, Score.sample_idx, Score.status)
        query = query.where(Score.build_id == self._build.data_id, Score.scorer_id == scorer_id, same)
        return {(row[0], row[1]): row[2] for row in await session.execute(query)}

    async def _count(
        self,
        session: AsyncSession,
        new: Sequence[dict[str, Any]],
        before: dict[tuple[int, int], ScoreStatus],
        scorer_id: int,
        seconds: float,
    ) -> None:
        pace: dict[str, Any] = {"samples_per_s": len(new) / max(seconds, 0.001), **({"barren": 0} if new else {})}
        if self._build.kind is not BuildKind.rescore:  # counted beside those that the first lease of its range scored
            changes: Counter[str] = Counter(row["status"] for row in new)
            changes.subtract(before[key] for row in new if (key := (row["problem"], row["sample_idx"])) in before)
            pace |= {status.value: getattr(Shard, status.value) + changes[status] for status in _COUNTED}
        await session.execute(update(Shard).where(Shard.id == self._lease.shard_id).values(pace))
        await self._recount(session, scorer_id)

    async def end(self, session: AsyncSession) -> None:
        """Raises `LeaseLost`."""
        await hold_shard(session, self._lease)
        build = await session.get_one(Build, self._lease.build_id)
        await self._recount(session, build.scorer_id)

    async def _recount(self, session: AsyncSession, scorer_id: int | None) -> None:
        """Set the counters of a shard of kind `rescore` to what is there, whoever wrote it."""
        if self._build.kind is BuildKind.rescore:
            ids = {"shard": self._lease.shard_id, "data": self._build.data_id, "scorer": scorer_id}
            await session.execute(_RECOUNT, ids)


_VALUES: Final = tuple(Scored.__dataclass_fields__)
_COUNTED: Final = (ScoreStatus.scored, ScoreStatus.score_error)
_RECOUNT: Final = text("""
UPDATE shards SET complete = d.complete, scored = d.scored, score_error = d.score_error
FROM (
    SELECT count(*) AS complete, count(*) FILTER (WHERE c.status = 'scored') AS scored,
        count(*) FILTER (WHERE c.status = 'score_error') AS score_error
    FROM shards h
    JOIN samples s ON s.build_id = :data AND s.problem >= h.lo AND s.problem < h.hi AND s.gen_status = 'complete'
    JOIN scores c ON c.build_id = :data AND c.problem = s.problem AND c.sample_idx = s.sample_idx
        AND c.scorer_id = :scorer
    WHERE h.id = :shard
) d
WHERE id = :shard""")


def _upsert(rows: Sequence[dict[str, Any]]) -> Any:
    """A score is never replaced by another, an error by whatever comes."""
    insert = postgresql.insert(Score).values(list(rows))
    return insert.on_conflict_do_update(
        index_elements=["build_id", "problem", "sample_idx", "scorer_id"],
        set_={name: insert.excluded[name] for name in _VALUES},
        where=Score.status == ScoreStatus.score_error,
    )
