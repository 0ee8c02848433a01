"""Ten million samples and as many scores: pages in every order, direction and filter, deep ones too, and the counts."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from jobs_bench import large
from jobs_bench.world import OWNER, postgres, with_database
from rlt_bench.command import RECORDS
from rlt_bench.measure import Record, machine
from rlt_client.schemas.builds import SampleSort
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds import browse, repository
from rlt_jobs.builds.browse import AS_INDEXED, Page, SampleFilter, samples_query
from rlt_jobs.builds.models import Build
from rlt_jobs.database import Database

__all__ = ["PLANS", "measure", "percentile", "run", "timed"]

SIZES: Final = [1_000_000, 100_000, 100_000, 30_000, 20_000]  # problems; × 8 samples are ten million
ROUNDS: Final = 40  # pages of each kind, each from another place
LIMIT: Final = 101  # what a page of 100 asks for
PLANS: Final = RECORDS / "builds-plans.txt"
FILTERS: Final = [
    SampleFilter(),
    SampleFilter(GenStatus.complete),
    SampleFilter(GenStatus.truncated),
    SampleFilter(GenStatus.engine_error),
    SampleFilter(score_status=ScoreStatus.scored),
    SampleFilter(score_status=ScoreStatus.score_error),
    SampleFilter(GenStatus.truncated, ScoreStatus.skipped),
]

Work = Callable[[AsyncSession], Awaitable[Any]]


def run(command: str) -> Record:
    record = Record("builds-browse", command, machine())
    with postgres() as url:
        builds = large.add(url, SIZES)
        with_database(url, lambda database: measure(record, database, builds[0], "no statistics yet"))
        large.analyze(url)
        with_database(url, lambda database: measure(record, database, builds[0], "analysed"))
        with_database(url, lambda database: _plans(database, builds[0]))
    record.notes.append(f"a build of 8 million samples among 10 million; {ROUNDS} pages of 100 from random places each")
    record.notes.append(
        "not among them: `skipped` without a state of the sample, which reads all samples up to its matches"
    )
    record.notes.append("the plans stand in docs/benchmarks/builds-plans.txt")
    return record


async def measure(record: Record, database: Database, build_id: int, way: str) -> None:
    """Times of each kind of page, with beginning and ending a transaction."""
    chance = random.Random(1)  # noqa: S311 the same places in every run
    async with database.begin() as session:
        build = await session.get_one(Build, build_id)
    for sort, wanted in product(SampleSort, FILTERS):
        seconds: list[float] = []
        for turn in range(ROUNDS):
            page = Page(sort, turn % 2 == 1, wanted, _somewhere(sort, build, chance) if turn > 1 else None, LIMIT)
            seconds.append(await timed(database, lambda session, page=page: _read(session, build, page)))  # type: ignore[misc]
        record.add(f"by {sort}, {_name(wanted)}", way, **percentile(seconds, compiling=4))
    await _counts(record, database, build_id, way)


async def _counts(record: Record, database: Database, build_id: int, way: str) -> None:
    works: dict[str, Work] = {
        "counts of one build": lambda session: repository.totals(session, [build_id]),
        "one build": lambda session: browse.builds(session, OWNER, build_id=build_id),
        "list of builds": lambda session: browse.builds(session, OWNER, limit=101),
        "why shards were given back": lambda session: browse.notes(session, [build_id]),
    }
    for name, work in works.items():
        seconds = [await timed(database, work) for _ in range(ROUNDS)]
        record.add(name, way, **percentile(seconds))


async def _read(session: AsyncSession, build: Build, page: Page) -> None:
    await browse.samples(
        session,
        build,
        page.sort,
        descending=page.descending,
        wanted=page.wanted,
        after=page.after,
        limit=page.limit,
    )


async def timed(database: Database, work: Work) -> float:
    """Seconds of one transaction."""
    began = time.perf_counter()
    async with database.begin() as session:
        await work(session)
    return time.perf_counter() - began


def percentile(seconds: list[float], compiling: int = 1) -> dict[str, float]:
    """Without the first ones, which compile a statement each: of pages both directions, from the beginning and deep."""
    kept = sorted(1_000 * each for each in seconds[compiling:])
    return {"median ms": statistics.median(kept), "p95 ms": kept[int(0.95 * len(kept))]}


def _somewhere(sort: SampleSort, build: Build, chance: random.Random) -> list[Any]:
    key = [chance.randrange(build.problems), chance.randrange(large.N)]
    first: dict[SampleSort, list[Any]] = {
        SampleSort.by_index: [],
        SampleSort.by_length: [100 + int(4_000 * chance.random() ** 2)],
        SampleSort.by_reward: [-sum(chance.random() for _ in range(3))],
    }
    return [*first[sort], *key]


def _name(wanted: SampleFilter) -> str:
    return " and ".join(str(state) for state in (wanted.gen_status, wanted.score_status) if state) or "all"


async def _plans(database: Database, build_id: int) -> None:
    """What Postgres does for the deep page of each kind, as it says itself."""
    found: list[str] = []
    chance = random.Random(2)  # noqa: S311 the same places in every run
    async with database.begin() as session:
        build = await session.get_one(Build, build_id)
        await session.execute(AS_INDEXED)
        for sort, wanted in product(SampleSort, FILTERS):
            page = Page(sort, True, wanted, _somewhere(sort, build, chance), LIMIT)
            found.append(
                f"-- by {sort}, {_name(wanted)}, descending, a deep page\n{await explained(session, build, page)}"
            )
    PLANS.write_text("\n\n".join(found) + "\n")


async def explained(session: AsyncSession, build: Build, page: Page) -> str:
    dialect = session.get_bind().dialect
    asked = samples_query(page.shape).params(page.values(build))
    query = asked.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    statement = f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {query}".replace(":", r"\:")
    return "\n".join((await session.scalars(text(statement))).all())
