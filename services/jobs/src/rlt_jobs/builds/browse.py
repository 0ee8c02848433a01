"""SQL of reading builds: lists, samples in three orders, events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from rlt_client.schemas.builds import BuildState, SampleSort
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds.models import Build, Dataset, Event, Problem, Sample, Score, Scorer, Shard
from rlt_jobs.store.models import File, Spool, Version

__all__ = ["BuildRow", "SampleFilter", "builds", "events", "notes", "samples", "sort_key", "texts"]


@dataclass(frozen=True, slots=True)
class BuildRow:
    build: Build
    dataset: str
    scorer: Scorer | None
    version: int | None


async def builds(
    session: AsyncSession,
    owner: str,
    *,
    build_id: int | None = None,
    state: BuildState | None = None,
    dataset: str | None = None,
    below: int | None = None,
    limit: int = 1,
) -> list[BuildRow]:
    """The owner's builds, newest first."""
    newest = select(func.max(Version.id)).where(Version.build_id == Build.id, Version.deleted_at.is_(None))
    query = (
        select(Build, Dataset.name, Scorer, newest.scalar_subquery())
        .join(Dataset, Dataset.id == Build.dataset_id)
        .outerjoin(Scorer, Scorer.id == Build.scorer_id)
        .where(Build.owner == owner, Build.deleted_at.is_(None))
        .order_by(Build.id.desc())
        .limit(limit)
    )
    wanted = {Build.id: build_id, Build.state: state, Dataset.name: dataset}
    query = query.where(*(column == value for column, value in wanted.items() if value is not None))
    if below is not None:
        query = query.where(Build.id < below)
    return [BuildRow(*row) for row in (await session.execute(query))]


async def notes(session: AsyncSession, build_ids: Sequence[int]) -> dict[int, str]:
    """Of builds whose shards were given back, why the last one was."""
    query = (
        select(Shard.build_id, Shard.error)
        .where(Shard.build_id.in_(build_ids), Shard.state == "ready", Shard.error.is_not(None))
        .ext(distinct_on(Shard.build_id))
        .order_by(Shard.build_id, Shard.rang_at.desc())
    )
    return {build_id: error for build_id, error in (await session.execute(query)) if error is not None}


@dataclass(frozen=True, slots=True)
class SampleFilter:
    gen_status: GenStatus | None = None
    score_status: ScoreStatus | None = None


_FIRST: dict[SampleSort, InstrumentedAttribute[Any] | None] = {
    SampleSort.by_index: None,
    SampleSort.by_reward: Score.reward,
    SampleSort.by_length: Sample.completion_tokens,
}


def sort_key(sort: SampleSort, sample: Sample, score: Score | None) -> list[Any]:
    """The values that a cursor holds."""
    first: dict[SampleSort, list[Any]] = {
        SampleSort.by_index: [],
        SampleSort.by_reward: [score.reward if score else None],
        SampleSort.by_length: [sample.completion_tokens],
    }
    return [*first[sort], sample.problem, sample.sample_idx]


async def samples(
    session: AsyncSession,
    build: Build,
    sort: SampleSort,
    *,
    descending: bool,
    wanted: SampleFilter,
    after: list[Any] | None,
    limit: int,
) -> Sequence[Row[Sample, Score | None]]:
    """Samples with the score by the build's scorer. By reward, only those that have one."""
    query = _joined(build, sort).where(Sample.build_id == build.data_id)
    for condition in _conditions(wanted):
        query = query.where(condition)
    first = _FIRST[sort]
    key = [Score.problem, Score.sample_idx] if sort is SampleSort.by_reward else [Sample.problem, Sample.sample_idx]
    columns: list[Any] = key if first is None else [first, *key]
    if after is not None:
        row = tuple_(*columns)
        query = query.where(row < tuple_(*after) if descending else row > tuple_(*after))
    query = query.order_by(*(column.desc() if descending else column for column in columns)).limit(limit)
    return (await session.execute(query)).all()


def _joined(build: Build, sort: SampleSort) -> Select[Sample, Score | None]:
    same = and_(
        Score.build_id == build.data_id,
        Score.problem == Sample.problem,
        Score.sample_idx == Sample.sample_idx,
        Score.scorer_id == build.scorer_id,
    )
    optional: type[Score | None] = Score  # an outer join gives None
    if sort is SampleSort.by_reward:
        return select(Sample, optional).join(Score, same).where(Score.reward.is_not(None))
    return select(Sample, optional).outerjoin(Score, same)


def _conditions(wanted: SampleFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.gen_status is not None:
        conditions.append(Sample.gen_status == wanted.gen_status)
    if wanted.score_status is ScoreStatus.skipped:
        conditions.append(or_(Score.status.is_(None), Score.status == ScoreStatus.skipped))
    elif wanted.score_status is not None:
        conditions.append(Score.status == wanted.score_status)
    return conditions


async def texts(
    session: AsyncSession, build_id: int, keys: Sequence[tuple[int, int]]
) -> Sequence[Row[int, int, str, str, bytes, str, int | None]]:
    """(problem, sample_idx, question, answer, spooled texts or None, file's URI or None, row or None) of samples."""
    same = and_(Spool.build_id == build_id, Spool.problem == Sample.problem, Spool.sample_idx == Sample.sample_idx)
    query = (
        select(Sample.problem, Sample.sample_idx, Problem.question, Problem.answer, Spool.texts, File.uri, Sample.row)
        .join(Problem, and_(Problem.build_id == build_id, Problem.idx == Sample.problem))
        .outerjoin(Spool, same)
        .outerjoin(File, File.id == Sample.file_id)
        .where(Sample.build_id == build_id, tuple_(Sample.problem, Sample.sample_idx).in_(keys))
    )
    return (await session.execute(query)).all()


async def events(session: AsyncSession, build_id: int, after: int, limit: int) -> Sequence[Event]:
    query = select(Event).where(Event.build_id == build_id, Event.id > after).order_by(Event.id).limit(limit)
    return (await session.scalars(query)).all()
