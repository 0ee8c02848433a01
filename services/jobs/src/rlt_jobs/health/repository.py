"""What the database says about itself and the work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.health import OutboxHealth, ShardsHealth, TroubledBuild

__all__ = ["Canary", "Server", "canaries", "outbox", "server", "shards", "troubled"]

MOST_BUILDS = 20  # of a list for people

_SERVER = text("SELECT current_setting('server_version') AS version, clock_timestamp() AS now")
_CANARIES = text("""
SELECT queue, extract(epoch FROM now() - sent_at) AS rung, extract(epoch FROM now() - arrived_at) AS answered
FROM canaries""")
_OUTBOX = text("""
SELECT count(*) AS waiting, coalesce(extract(epoch FROM now() - min(created_at)), 0) AS seconds
FROM outbox WHERE sent_at IS NULL""")
_SHARDS = text("""
SELECT count(*) FILTER (WHERE s.state = 'ready') AS ready, count(*) FILTER (WHERE s.state = 'running') AS running,
    count(*) FILTER (WHERE s.state = 'running' AND s.lease_until < now()) AS overdue
FROM shards s JOIN builds b ON b.id = s.build_id
WHERE b.state = 'running' AND s.state IN ('ready', 'running')""")
_TROUBLED = text("""
SELECT b.id, b.owner, d.name AS dataset, b.stalled, extract(epoch FROM now() - b.stalled_at) AS stalled_seconds,
    coalesce(dead.shards, 0) AS dead_shards, dead.error AS last_error
FROM builds b JOIN datasets d ON d.id = b.dataset_id
LEFT JOIN LATERAL (
    SELECT count(*) AS shards, max(error) AS error FROM shards s WHERE s.build_id = b.id AND s.state = 'dead'
) dead ON true
WHERE b.state IN ('importing', 'running', 'paused', 'finishing') AND b.deleted_at IS NULL
    AND (b.stalled_at IS NOT NULL OR dead.shards > 0)
ORDER BY b.id LIMIT :most""")


@dataclass(frozen=True, slots=True)
class Server:
    version: str
    now: datetime
    """By its clock."""


@dataclass(frozen=True, slots=True)
class Canary:
    """Seconds since a proof was sent through a queue, and since one arrived; None: none ever did."""

    rung: float
    answered: float | None


async def server(session: AsyncSession) -> Server:
    row = (await session.execute(_SERVER)).one()
    return Server(row.version.split()[0], row.now)  # 17.2 (Debian …)


async def canaries(session: AsyncSession) -> dict[str, Canary]:
    """By queue."""
    rows = await session.execute(_CANARIES)
    return {row.queue: Canary(float(row.rung), None if row.answered is None else float(row.answered)) for row in rows}


async def outbox(session: AsyncSession) -> OutboxHealth:
    row = (await session.execute(_OUTBOX)).one()
    return OutboxHealth(waiting=row.waiting, oldest_seconds=float(row.seconds))


async def shards(session: AsyncSession) -> ShardsHealth:
    row = (await session.execute(_SHARDS)).one()
    return ShardsHealth(ready=row.ready, running=row.running, overdue=row.overdue)


async def troubled(session: AsyncSession) -> list[TroubledBuild]:
    rows = await session.execute(_TROUBLED, {"most": MOST_BUILDS})
    return [TroubledBuild.model_validate(dict(row._mapping)) for row in rows]
