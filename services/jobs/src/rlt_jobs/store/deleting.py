"""Deletion: what is deleted is hidden at once; the sweep removes rows and files once the retention is over.

A version reads its own manifest and the files of the build that made its traces, nothing of its parent. So a version
can always be deleted, and a build cannot while a version, or a build that scores or ranks its samples, lives on it.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import Conflict, NotFound
from rlt_client.schemas.builds import BuildState
from rlt_jobs.builds import lifecycle, repository
from rlt_jobs.builds.models import Build, Dataset
from rlt_jobs.database import Database
from rlt_jobs.store import repository as stored
from rlt_jobs.store.models import File, Version, VersionFile

__all__ = ["Deletions", "readers"]

SHOWN = 10  # readers named in a refusal


class Deletions:
    """Every method raises `NotFound`, also for what is another owner's or was deleted before."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def build(self, owner: str, build_id: int) -> None:
        """Raises `Conflict` for a build that has not ended, or that something living reads from."""
        async with self._database.begin() as session:
            build = await repository.lock_build(session, build_id, owner)
            if build.state not in lifecycle.ENDED:
                raise Conflict(f"a build that is {build.state} cannot be deleted: cancel it first", type="wrong_state")
            _expect_none(await readers(session, build_id))
            build.deleted_at = func.now()
            build.idempotency_key = None  # the same request may make it anew

    async def version(self, owner: str, version_id: int) -> None:
        async with self._database.begin() as session:
            version, _, _ = await stored.find_version(session, version_id, owner)
            version.deleted_at = func.now()

    async def upload(self, owner: str, upload_id: UUID) -> None:
        """Raises `Conflict` while a build imports it."""
        async with self._database.begin() as session:
            upload = await stored.upload(session, upload_id, owner)
            if upload is None:
                raise NotFound(f"there is no upload {upload_id}")
            importing = select(Build.id).where(Build.upload_id == upload_id, Build.state == BuildState.importing)
            _expect_none([f"build {found}" for found in await session.scalars(importing)])
            upload.deleted_at = func.now()


async def readers(session: AsyncSession, build_id: int) -> list[str]:
    """What reads from a build and has not been deleted, in words."""
    files = exists().where(
        VersionFile.version_id == Version.id, File.id == VersionFile.file_id, File.build_id == build_id
    )
    versions = (
        select(Dataset.name, Version.number, Version.id)
        .join(Version, Version.dataset_id == Dataset.id)
        .where(Version.deleted_at.is_(None), or_(Version.build_id == build_id, files))
        .order_by(Version.id)
    )
    builds = select(Build.id, Build.kind).where(and_(Build.of_build_id == build_id, Build.deleted_at.is_(None)))
    return [
        *(f"version {row.id} (number {row.number} of {row.name!r})" for row in await session.execute(versions)),
        *(f"build {row.id} ({row.kind})" for row in await session.execute(builds.order_by(Build.id))),
    ]


def _expect_none(found: list[str]) -> None:
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise Conflict(f"still read by {', '.join(found[:SHOWN])}{more}: delete these first", type="in_use")
