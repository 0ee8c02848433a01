"""What the same step costs in builds of ten thousand, a hundred thousand and a million problems."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from jobs_bench import large
from jobs_bench.browse import Work, percentile, timed
from jobs_bench.world import OWNER, outcomes, postgres, texts, with_database
from rlt_bench.measure import Record, machine
from rlt_client.schemas.builds import SampleSort, Selection
from rlt_jobs.builds import browse, lifecycle, repository
from rlt_jobs.builds.browse import SampleFilter
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.models import Build
from rlt_jobs.database import Database
from rlt_jobs.leases import Claimed, claim_shard
from rlt_jobs.store import selecting

__all__ = ["run"]

SIZES: Final = (10_000, 100_000, 1_000_000)  # problems × 8 samples
ROUNDS: Final = 30
BATCH: Final = 1_024
BUILDS: Final = 5_000  # other builds of the same owner, for the list


def run(command: str) -> Record:
    record = Record("builds-growth", command, machine())
    for problems in SIZES:
        with postgres() as url:
            [build] = large.add(url, [problems])
            large.analyze(url)
            with_database(url, lambda database, n=problems, id=build: _measure(record, database, id, n))  # type: ignore[misc]
    record.notes.append(f"medians and 95th percentiles of {ROUNDS}, in ms, each one transaction; 8 samples a problem")
    record.notes.append(f"flush: {BATCH:,} new rows into the build that has the others already")
    return record


async def _measure(record: Record, database: Database, build_id: int, problems: int) -> None:
    async with database.begin() as session:
        build = await session.get_one(Build, build_id)
        await session.execute(text("UPDATE builds SET state = 'running'"))
        await session.execute(text("UPDATE shards SET state = 'ready' WHERE lo >= 32"))
    case = f"{problems:,} problems"
    for name, work in _reads(build).items():
        record.add(case, name, **percentile([await timed(database, work) for _ in range(ROUNDS)]))
    seconds = [await timed(database, _claim) for _ in range(ROUNDS)]
    record.add(case, "claim", **percentile(seconds))
    record.add(case, f"flush of {BATCH:,} rows", **percentile(await _flushes(database, build)))
    async with database.begin() as session:
        await session.execute(text(_BUILDS), {"owner": OWNER, "count": BUILDS})
    listed = [await timed(database, lambda s: browse.builds(s, OWNER, limit=101)) for _ in range(ROUNDS)]
    record.add(case, f"list of {BUILDS:,} builds", **percentile(listed))


_BUILDS: Final = """
INSERT INTO builds (dataset_id, owner, kind, state, n, spec, spec_hash, request_hash)
SELECT (SELECT min(id) FROM datasets), :owner, 'generate', 'done', 1, '{}', '', '' FROM generate_series(1, :count)"""


def _reads(build: Build) -> dict[str, Work]:
    middle = build.problems // 2

    def page(sort: SampleSort, after: list[Any]) -> Work:
        wanted = SampleFilter()
        return lambda session: browse.samples(
            session, build, sort, descending=True, wanted=wanted, after=after, limit=101
        )

    return {
        "page by index": page(SampleSort.by_index, [middle, 0]),
        "page by reward": page(SampleSort.by_reward, [-1.5, middle, 0]),
        "page by length": page(SampleSort.by_length, [1_000, middle, 0]),
        "totals": lambda session: repository.totals(session, [build.id]),
        "settle": lambda session: lifecycle.settle(session, build.id),
        "members of 128 problems": lambda session: _members(session, build, middle),
    }


async def _members(session: AsyncSession, build: Build, lo: int) -> None:
    """As publishing asks for them, part by part."""
    await selecting.members(session, build.id, build.scorer_id, Selection(), lo, lo + 128)


async def _claim(session: AsyncSession) -> None:
    assert await claim_shard(session, None, worker="bench", seconds=3_600) is not None


async def _flushes(database: Database, build: Build) -> list[float]:
    made = texts(64, seed=1)
    async with database.begin() as session:
        lease = await claim_shard(session, None, worker="bench", seconds=3_600)
    assert lease is not None
    assert build.scorer_id is not None
    seconds = []
    for turn in range(ROUNDS):
        rows = outcomes(build.problems + turn * BATCH // 8, BATCH, 8, made)
        seconds.append(await timed(database, _flush(lease, rows, build.scorer_id)))
    return seconds


def _flush(lease: Claimed, rows: Any, scorer_id: int) -> Work:
    return lambda session: flush(session, lease, rows, scorer_id=scorer_id, seconds=1.0)
