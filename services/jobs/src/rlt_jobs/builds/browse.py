"""SQL of reading builds: lists, samples in three orders, events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Row, Select, and_, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.builds import BuildState, SampleSort
from rlt_jobs.builds.models import Build, Dataset, Event, Problem, Sample, Score, Scorer, Shard
from rlt_jobs.builds.orders import BUILD, SCORER, Page, SampleFilter, Shape, keys
from rlt_jobs.store.models import File, Spool, Version

__all__ = [
    "AS_INDEXED",
    "BuildRow",
    "Page",
    "SampleFilter",
    "Shape",
    "builds",
    "events",
    "notes",
    "samples",
    "samples_query",
    "sort_key",
    "texts",
]


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


# A page is read in the order of an index, whatever the statistics say of tables that grew since they were made.
AS_INDEXED = text("""
SELECT set_config(name, value, true) FROM (VALUES
    ('enable_seqscan', 'off'), ('enable_bitmapscan', 'off'), ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off'),
    ('enable_sort', 'off'), ('enable_incremental_sort', 'off'), ('enable_material', 'off'), ('jit', 'off'),
    ('plan_cache_mode', 'force_custom_plan')
) AS planner (name, value)""")


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
    await session.execute(AS_INDEXED)
    page = Page(sort, descending, wanted, after, limit)
    return (await session.execute(samples_query(page.shape), page.values(build))).all()


@lru_cache
def samples_query(page: Shape) -> Select[Sample, Score | None]:
    """Run with `Page.values`."""
    found = keys(page)
    optional: type[Score | None] = Score  # an outer join gives None
    here = (found.c.problem, found.c.sample_idx)
    sample = and_(Sample.build_id == BUILD, Sample.problem == here[0], Sample.sample_idx == here[1])
    score = and_(
        Score.build_id == BUILD,
        Score.problem == here[0],
        Score.sample_idx == here[1],
        Score.scorer_id == SCORER,
    )
    query = select(Sample, optional).select_from(found).join(Sample, sample).outerjoin(Score, score)
    return query.order_by(*page.order(*found.c))


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
