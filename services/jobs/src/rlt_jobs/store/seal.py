"""The end of a shard: its spooled texts become one file, and the spool is emptied."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import RLTError
from rlt_client.schemas.builds import ShardState
from rlt_jobs.builds.lifecycle import settle
from rlt_jobs.builds.models import Problem, Sample, Shard
from rlt_jobs.builds.outcomes import decompress
from rlt_jobs.database import Database, rows_changed
from rlt_jobs.leases import Claimed, LeaseLost, hold_shard
from rlt_jobs.store.files import Store, Stored
from rlt_jobs.store.models import File, Spool
from rlt_jobs.store.traces import TRACE, open_writer, table

__all__ = ["Unfinished", "seal"]

# Rows stand in the file in this order, so the position of each is known to both sides.
_POINT = text("""
UPDATE samples s SET file_id = :file, row = r.row
FROM (
    SELECT problem, sample_idx, row_number() OVER (ORDER BY problem, sample_idx) - 1 AS row
    FROM spool WHERE shard_id = :shard
) r
WHERE s.build_id = :build AND s.problem = r.problem AND s.sample_idx = r.sample_idx""")

# A rescoring has no samples of its own, and a shard that asks again only some of its range.
_WITHOUT_OUTCOME = text("""
SELECT (s.hi - s.lo) * b.n
    - (SELECT count(*) FROM samples m WHERE m.build_id = b.id AND m.problem >= s.lo AND m.problem < s.hi)
FROM shards s JOIN builds b ON b.id = s.build_id
WHERE s.id = :shard AND s.only IS NULL AND b.kind IN ('generate', 'score')""")


class Unfinished(RLTError):
    """A shard was to be called done while samples of it have no outcome. Its next lease makes them."""


@dataclass(frozen=True, slots=True)
class _Sealed:
    stored: Stored
    rows: int


async def seal(database: Database, store: Store, lease: Claimed) -> None:
    """Write the file, then, fenced, everything that says so; the shard is done and its build perhaps too.

    Nothing is half done at any moment: a file that no row names yet is only a file.

    Raises:
        LeaseLost, Unfinished: nothing but the file was written.
    """
    async with database.begin() as session:
        rows = await _spooled(session, lease)
    sealed = await asyncio.to_thread(_write, store, lease, rows) if rows else None
    async with database.begin() as session:
        await hold_shard(session, lease)
        if sealed is not None:
            await _record(session, lease, sealed)
        await _finish(session, lease)


async def _spooled(session: AsyncSession, lease: Claimed) -> Sequence[Any]:
    query = (
        select(Spool.texts, Sample, Problem.question_hash)
        .join(
            Sample,
            (Sample.build_id == Spool.build_id)
            & (Sample.problem == Spool.problem)
            & (Sample.sample_idx == Spool.sample_idx),
        )
        .join(Problem, (Problem.build_id == Spool.build_id) & (Problem.idx == Spool.problem))
        .where(Spool.shard_id == lease.shard_id, Sample.build_id == lease.build_id)
        .order_by(Spool.problem, Spool.sample_idx)
    )
    return (await session.execute(query)).all()


def _write(store: Store, lease: Claimed, rows: Sequence[Any]) -> _Sealed:
    uri = f"builds/{lease.build_id}/shards/{lease.shard_id}-{uuid4().hex}.parquet"
    with store.create(uri) as pending, open_writer(pending.writer, TRACE) as writer:
        writer.write_table(table([_trace(*row) for row in rows], TRACE))
    return _Sealed(pending.stored, len(rows))


def _trace(blob: bytes, sample: Sample, question_hash: bytes) -> dict[str, Any]:
    names = ("build_id", "problem", "sample_idx", "finish_reason", "policy_revision", "request_key")
    return {
        **{name: getattr(sample, name) for name in names},
        "try": sample.try_,
        "gen_status": sample.gen_status.value,
        "prompt_tokens": sample.prompt_tokens,
        "completion_tokens": sample.completion_tokens,
        "question_hash": question_hash,
        **decompress(blob).model_dump(),
    }


async def _record(session: AsyncSession, lease: Claimed, sealed: _Sealed) -> None:
    stored = sealed.stored
    values = {"uri": stored.uri, "bytes": stored.bytes, "sha256": stored.sha256, "rows": sealed.rows}
    place = {"build_id": lease.build_id, "kind": "shard", "lo": lease.lo, "hi": lease.hi}
    file_id = await session.scalar(insert(File).values(**values, **place).returning(File.id))
    ids = {"file": file_id, "shard": lease.shard_id, "build": lease.build_id}
    pointed = rows_changed(await session.execute(_POINT, ids))
    if pointed != sealed.rows:  # the spool changed under a lease that was ours throughout
        raise LeaseLost(f"shard {lease.shard_id}: {sealed.rows} rows were sealed, {pointed} are spooled")
    await session.execute(delete(Spool).where(Spool.shard_id == lease.shard_id))


async def _finish(session: AsyncSession, lease: Claimed) -> None:
    if without := await session.scalar(_WITHOUT_OUTCOME, {"shard": lease.shard_id}):
        raise Unfinished(f"shard {lease.shard_id}: {without} samples have no outcome")
    done = {"state": ShardState.done, "lease_token": None, "lease_until": None, "worker": None, "barren": 0}
    rates = {"tokens_per_s": 0, "samples_per_s": 0, "error": None, "rang_at": func.now()}
    await session.execute(update(Shard).where(Shard.id == lease.shard_id).values({**done, **rates}))
    await settle(session, lease.build_id)
