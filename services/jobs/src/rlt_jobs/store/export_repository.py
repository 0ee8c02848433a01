"""SQL of exports that are kept."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import delete, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.schemas.builds import ExportFormat, ExportShape
from rlt_jobs.store.files import Stored
from rlt_jobs.store.models import ExportFile

__all__ = ["forget", "keep", "kept"]


async def kept(session: AsyncSession, version_id: int, format: ExportFormat, shape: ExportShape) -> Stored | None:
    """Where an export lies; remembers that it was asked for."""
    same = (ExportFile.version_id == version_id, ExportFile.format == format.value, ExportFile.shape == shape.value)
    query = update(ExportFile).where(*same).values(asked_at=func.now())
    found = (await session.execute(query.returning(ExportFile.uri, ExportFile.bytes, ExportFile.sha256))).one_or_none()
    return None if found is None else Stored(*found)


async def keep(
    session: AsyncSession, version_id: int, format: ExportFormat, shape: ExportShape, stored: Stored
) -> Stored:
    """Record an export. Returns the one that counts, which is another's if that was recorded before."""
    values = {"version_id": version_id, "format": format.value, "shape": shape.value, **asdict(stored)}
    await session.execute(insert(ExportFile).values(values).on_conflict_do_nothing())
    found = await kept(session, version_id, format, shape)
    assert found is not None
    return found


async def forget(session: AsyncSession, uri: str) -> None:
    await session.execute(delete(ExportFile).where(ExportFile.uri == uri))
