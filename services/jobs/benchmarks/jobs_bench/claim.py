"""Taking a shard of a hundred thousand that are ready: by one worker, and by sixteen at the same moment."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from jobs_bench import large
from jobs_bench.browse import percentile
from jobs_bench.world import add_build, postgres
from rlt_bench.measure import Record, machine
from rlt_jobs.database import Database
from rlt_jobs.leases import claim_shard

__all__ = ["claims", "run"]

SHARDS: Final = 100_000
BUILDS: Final = (1, 20)  # open builds that the shards are spread over
CLAIMERS: Final = (1, 16)
CLAIMS: Final = 640


def run(command: str) -> Record:
    record = Record("builds-claim", command, machine())
    for builds in BUILDS:
        with postgres() as url:
            asyncio.run(_fill(url, builds))
            for claimers in CLAIMERS:
                seconds = asyncio.run(claims(url, claimers=claimers, claims=CLAIMS))
                record.add(f"{SHARDS:,} ready shards of {builds} builds", f"{claimers} at once", **percentile(seconds))
    record.notes.append(f"{CLAIMS} claims each, each one transaction, beginning and durable end included")
    return record


async def _fill(url: str, builds: int) -> None:
    database = Database(url, name="jobs_bench")
    for _ in range(builds):
        await add_build(database, problems=SHARDS // builds, n=1, shard_samples=1)
    await database.close()
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM outbox"))  # of the relay, which does not run
    engine.dispose()
    large.analyze(url)


async def claims(url: str, *, claimers: int, claims: int) -> list[float]:
    """Seconds of each of so many claims, shared by so many claimers with a connection each."""
    database = Database(url, name="jobs_bench", pool=claimers)
    seconds: list[float] = []
    taken: set[int] = set()

    async def work(worker: str) -> None:
        for _ in range(claims // claimers):
            began = time.perf_counter()
            async with database.begin() as session:
                lease = await claim_shard(session, None, worker=worker, seconds=3_600)
            seconds.append(time.perf_counter() - began)
            assert lease is not None
            assert lease.shard_id not in taken, "two leases of one shard"
            taken.add(lease.shard_id)

    try:
        await asyncio.gather(*(work(f"w{index}") for index in range(claimers)))
    finally:
        await database.close()
    return seconds
