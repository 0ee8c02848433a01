"""The fenced write of a worker's outcomes: samples, scores, texts and counters in one transaction.

Rows that are all new, as nearly all are, go by COPY straight into their tables. Where one of them is there already
the copies are undone and `merge` decides row by row what replaces what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_jobs.builds import rows
from rlt_jobs.builds.merge import merge
from rlt_jobs.builds.outcomes import RETRIED, Outcome, compressor
from rlt_jobs.database import copy_rows, raw_connection
from rlt_jobs.leases import Claimed, LeaseLost, hold_shard

__all__ = ["flush"]

COUNTED = (ScoreStatus.scored, ScoreStatus.score_error)
COUNTERS = (*GenStatus, *COUNTED, "prompt_tokens", "completion_tokens")

_COUNT = f"""
UPDATE shards SET {", ".join(f"{name} = {name} + %({name})s" for name in COUNTERS)}, barren = 0,
    samples_per_s = %(rows)s / %(seconds)s, tokens_per_s = %(completion_tokens)s / %(seconds)s
WHERE id = %(shard)s AND lease_token = %(token)s"""  # noqa: S608 our own names


async def flush(
    session: AsyncSession, lease: Claimed, outcomes: Sequence[Outcome], *, scorer_id: int | None, seconds: float
) -> int:
    """Write `outcomes`, made in the last `seconds`, if the lease is still ours. Returns how many rows really changed.

    A row is replaced only by a higher try, or by the same try where it was an engine error or cancelled.

    Raises:
        LeaseLost: nothing was written.
    """
    latest = _latest(outcomes)
    seconds = max(seconds, 0.001)
    asks_again = lease.try_ > 0  # its samples have rows
    if latest and not asks_again and await _append(session, lease, latest, scorer_id=scorer_id, seconds=seconds):
        return len(latest)
    await hold_shard(session, lease)
    return await merge(session, lease, latest, scorer_id=scorer_id, seconds=seconds)


def _latest(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One outcome a sample, by the rule for rows, in the order of the primary key: locks are taken in one order."""
    kept: dict[tuple[int, int], Outcome] = {}
    for outcome in outcomes:
        key = (outcome.problem, outcome.sample_idx)
        if key not in kept or _replaces(outcome, kept[key]):
            kept[key] = outcome
    return [kept[key] for key in sorted(kept)]


def _replaces(new: Outcome, old: Outcome) -> bool:
    return new.try_ > old.try_ or (new.try_ == old.try_ and old.gen_status in RETRIED)


async def _append(
    session: AsyncSession, lease: Claimed, outcomes: Sequence[Outcome], *, scorer_id: int | None, seconds: float
) -> bool:
    """Write all rows, or nothing: False where one of them exists. The counters go first: their row is the fence."""
    raw = await raw_connection(session)
    await raw.execute("SAVEPOINT append")
    try:
        counted = await raw.execute(_COUNT.encode(), _counts(lease, outcomes, scorer_id, seconds))
        if counted.rowcount != 1:
            raise LeaseLost(f"shard {lease.shard_id}")
        await _copy(session, lease, outcomes, scorer_id)
    except psycopg.errors.UniqueViolation:
        await raw.execute("ROLLBACK TO SAVEPOINT append")
        return False
    return True


async def _copy(session: AsyncSession, lease: Claimed, outcomes: Sequence[Outcome], scorer_id: int | None) -> None:
    build, shard, compress = lease.build_id, lease.shard_id, compressor()
    await copy_rows(session, "samples", rows.SAMPLE, [rows.sample(build, o) for o in outcomes])
    if scorer_id is not None:
        scores = [rows.score(build, o, scorer_id) for o in outcomes if o.score is not None]
        await copy_rows(session, "scores", rows.SCORE, scores)
    texts = (rows.spooled(build, o, shard, compress) for o in outcomes if o.texts is not None)
    await copy_rows(session, "spool", rows.SPOOL, texts)


def _counts(lease: Claimed, outcomes: Sequence[Outcome], scorer_id: int | None, seconds: float) -> dict[str, Any]:
    """What appending changes in the shard's counters."""
    added: Counter[str] = Counter(outcome.gen_status for outcome in outcomes)
    if scorer_id is not None:
        added.update(outcome.score.status for outcome in outcomes if outcome.score is not None)
    for name in ("prompt_tokens", "completion_tokens"):
        added[name] = sum(getattr(outcome, name) for outcome in outcomes)
    given = {"rows": len(outcomes), "seconds": seconds, "shard": lease.shard_id, "token": lease.token}
    return {**{str(name): added[name] for name in COUNTERS}, **given}
