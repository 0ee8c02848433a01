"""Proof that the store holds what the database says: `rlt-jobs check`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pyarrow.parquet as pq
from sqlalchemy import and_, or_, select

from rlt_jobs.builds.models import Sample
from rlt_jobs.database import Database
from rlt_jobs.store.files import Damaged, Store, Stored
from rlt_jobs.store.models import File, Version

__all__ = ["check"]

_KEY = ["build_id", "problem", "sample_idx"]


async def check(database: Database, store: Store) -> AsyncIterator[str]:
    """Everything that is wrong: damaged files, samples that point at no row or at another sample's."""
    async with database.begin() as session:
        files = (await session.scalars(select(File).order_by(File.id))).all()
        versions = (await session.scalars(select(Version).order_by(Version.id))).all()
        beyond = or_(File.id.is_(None), Sample.row >= File.rows, Sample.row < 0, Sample.row.is_(None))
        lost = select(Sample).outerjoin(File, File.id == Sample.file_id).where(Sample.file_id.is_not(None), beyond)
        for sample in await session.scalars(lost):
            yield f"build {sample.build_id}, sample {sample.problem}.{sample.sample_idx} points at no row"
    for version in versions:
        manifest = Stored(version.manifest_uri, version.manifest_bytes, version.manifest_sha256)
        try:
            await asyncio.to_thread(store.verify, manifest)
        except Damaged as error:
            yield f"version {version.id}: {error}"
    for file in files:
        try:
            await asyncio.to_thread(store.verify, Stored(file.uri, file.bytes, file.sha256))
        except Damaged as error:
            yield str(error)
        else:
            async for wrong in _strangers(database, store, file):
                yield wrong


def _keys(store: Store, uri: str) -> list[dict[str, int]]:
    with store.open(uri) as file:
        keys: list[dict[str, int]] = pq.read_table(file, columns=_KEY).to_pylist()
    return keys


async def _strangers(database: Database, store: Store, file: File) -> AsyncIterator[str]:
    """Samples that point into the file at a row of another sample."""
    keys = await asyncio.to_thread(_keys, store, file.uri)
    same = and_(Sample.build_id == file.build_id, Sample.file_id == file.id)
    async with database.begin() as session:
        for sample in await session.scalars(select(Sample).where(same)):
            found = keys[sample.row] if sample.row is not None and sample.row < len(keys) else {}
            if (found.get("problem"), found.get("sample_idx")) != (sample.problem, sample.sample_idx):
                yield f"{file.uri}, row {sample.row} is not sample {sample.problem}.{sample.sample_idx}"
