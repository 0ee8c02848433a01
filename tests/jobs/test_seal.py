"""Sealing: the texts of a shard become one file, whole and pointed at, or nothing has happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from sqlalchemy import func, select

from rlt_client.schemas.builds import BuildState, ShardState
from rlt_client.schemas.common import GenStatus
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.models import Build, Sample, Shard
from rlt_jobs.database import Database
from rlt_jobs.leases import PUBLISH, Claimed, LeaseLost, give_back
from rlt_jobs.outbox import Outbox
from rlt_jobs.store.files import Store, Stored, StoreFull
from rlt_jobs.store.models import File, Spool
from rlt_jobs.store.seal import seal

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder for each test: they count its files."""
    return Store(tmp_path / "store")


@pytest_asyncio.fixture(loop_scope="module")
async def lease(database: Database, make_build: Any, claim: Any, outcome: Any) -> Claimed:
    """A claimed shard of 2 problems × 2 samples, all flushed, one of them without texts."""
    build_id = await make_build(problems=2, n=2)
    async with database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == build_id))
    taken: Claimed = await claim(shard_id)
    outcomes = [outcome(1, 1), outcome(0, 1), outcome(1, 0, GenStatus.context_overflow), outcome(0, 0)]
    async with database.begin() as session:
        await flush(session, taken, outcomes, scorer_id=None, seconds=1)
    return taken


async def spooled(database: Database, lease: Claimed) -> int:
    async with database.begin() as session:
        return await session.scalar(select(func.count()).where(Spool.build_id == lease.build_id)) or 0


async def test_every_sample_points_at_its_row_and_the_build_goes_on(
    database: Database, store: Store, lease: Claimed
) -> None:
    await seal(database, store, lease)
    async with database.begin() as session:
        file = (await session.scalars(select(File).where(File.build_id == lease.build_id))).one()
        samples = (await session.scalars(select(Sample).where(Sample.build_id == lease.build_id))).all()
        shard = await session.get_one(Shard, lease.shard_id)
        build = await session.get_one(Build, lease.build_id)
        rung = select(func.count()).where(Outbox.task == PUBLISH, Outbox.ref == lease.build_id)
        assert await session.scalar(rung) == 1
    store.verify(Stored(file.uri, file.bytes, file.sha256))
    rows = pq.read_table(store.open(file.uri)).to_pylist()
    assert (file.rows, len(rows), file.lo, file.hi) == (3, 3, 0, 2)
    for sample in samples:
        if sample.gen_status is GenStatus.complete:
            assert sample.row is not None
            row = rows[sample.row]
            assert (row["problem"], row["sample_idx"]) == (sample.problem, sample.sample_idx)
            assert row["explanation"] == f"E{sample.problem}.{sample.sample_idx}.0"
            assert sample.file_id == file.id
        else:
            assert (sample.file_id, sample.row) == (None, None)
    assert await spooled(database, lease) == 0
    assert (shard.state, shard.lease_token) == (ShardState.done, None)
    assert build.state is BuildState.finishing


async def test_a_lease_lost_before_the_seal_leaves_a_file_nobody_names(
    database: Database, store: Store, lease: Claimed
) -> None:
    async with database.begin() as session:
        await give_back(session, lease, blameless=True, max_barren=5)
    with pytest.raises(LeaseLost):
        await seal(database, store, lease)
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).where(File.build_id == lease.build_id)) == 0
        assert (await session.get_one(Shard, lease.shard_id)).state is ShardState.ready
    assert await spooled(database, lease) == 3
    assert len(list(store.list())) == 1


async def test_a_crash_while_the_file_is_written_changes_nothing(
    database: Database, store: Store, lease: Claimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rlt_jobs.store.folder.os.fsync", full)
        with pytest.raises(StoreFull, match="No space"):
            await seal(database, store, lease)
    assert await spooled(database, lease) == 3
    assert list(store.list()) == []
    await seal(database, store, lease)  # the same lease may try again
    assert await spooled(database, lease) == 0


async def test_a_shard_without_any_text_is_done_without_a_file(
    database: Database, store: Store, make_build: Any, claim: Any, outcome: Any
) -> None:
    build_id = await make_build(problems=1, n=1)
    async with database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == build_id))
    lease = await claim(shard_id)
    async with database.begin() as session:
        await flush(session, lease, [outcome(0, 0, GenStatus.engine_error)], scorer_id=None, seconds=1)
    await seal(database, store, lease)
    async with database.begin() as session:
        assert (await session.get_one(Shard, shard_id)).state is ShardState.done
        assert await session.scalar(select(func.count()).where(File.build_id == build_id)) == 0


async def test_only_the_last_shard_closes_the_build(
    database: Database, store: Store, make_build: Any, claim: Any, outcome: Any
) -> None:
    build_id = await make_build(problems=2, n=1, shard_samples=1)
    async with database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id).order_by(Shard.lo))).all()
    states = []
    for problem, shard_id in enumerate(ids):
        lease = await claim(shard_id)
        async with database.begin() as session:
            await flush(session, lease, [outcome(problem, 0)], scorer_id=None, seconds=1)
        await seal(database, store, lease)
        async with database.begin() as session:
            states.append((await session.get_one(Build, build_id)).state)
    assert states == [BuildState.running, BuildState.finishing]
