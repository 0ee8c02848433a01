"""Which shards of a build there are to be had."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import update

from rlt_jobs.builds.models import Shard
from rlt_jobs.database import Database

__all__ = ["hold_back"]


async def hold_back(database: Database, build_id: int, until: datetime | None, *, lo: int = 0) -> None:
    """No claim takes shards from problem `lo` on before that."""
    async with database.begin() as session:
        await session.execute(update(Shard).where(Shard.build_id == build_id, Shard.lo >= lo).values(retry_at=until))
