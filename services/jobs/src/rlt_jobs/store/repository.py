"""SQL of the store: files, members, versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    and_,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import NotFound
from rlt_client.schemas.builds import SourceFormat
from rlt_client.schemas.common import ScoreStatus
from rlt_jobs.builds.models import Build, Dataset, Event, Problem, Sample, Score, Scorer
from rlt_jobs.builds.repository import totals
from rlt_jobs.database import rows_changed
from rlt_jobs.store.files import Stored
from rlt_jobs.store.models import File, Upload, Version, VersionFile

__all__ = [
    "add_file",
    "add_upload",
    "add_version",
    "dataset",
    "datasets",
    "files_of",
    "find_version",
    "newest_version",
    "policy_revisions",
    "repoint",
    "uncompacted",
    "upload",
    "uploads",
    "version_counts",
    "version_files",
    "versions",
    "why_unscored",
    "written",
]


async def add_upload(
    session: AsyncSession,
    upload_id: UUID,
    owner: str,
    name: str | None,
    stored: Stored,
    format: SourceFormat = SourceFormat.jsonl,
) -> Upload:
    row = Upload(id=upload_id, owner=owner, name=name, format=format.value, **asdict(stored))
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row


async def upload(session: AsyncSession, upload_id: UUID, owner: str) -> Upload | None:
    mine = (Upload.id == upload_id, Upload.owner == owner, Upload.deleted_at.is_(None))
    return await session.scalar(select(Upload).where(*mine))


async def uploads(
    session: AsyncSession, owner: str, below: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Upload]:
    """Newest first; `below`: (created_at, id) of the last one seen."""
    key = tuple_(Upload.created_at, Upload.id)
    mine = select(Upload).where(Upload.owner == owner, Upload.deleted_at.is_(None))
    query = mine.order_by(Upload.created_at.desc(), Upload.id.desc()).limit(limit)
    if below is not None:
        query = query.where(key < below)
    return (await session.scalars(query)).all()


async def add_file(session: AsyncSession, build_id: int, kind: str, lo: int, hi: int, rows: int, stored: Stored) -> int:
    values = {"build_id": build_id, "kind": kind, "lo": lo, "hi": hi, "rows": rows, **asdict(stored)}
    file_id: int | None = await session.scalar(insert(File).values(values).returning(File.id))
    assert file_id is not None
    return file_id


async def uncompacted(session: AsyncSession, build_id: int, lo: int) -> int | None:
    """The first problem, from `lo` on, of which a trace lies in the file of a shard."""
    query = (
        select(Sample.problem)
        .join(File, and_(File.id == Sample.file_id, File.kind == "shard"))
        .where(Sample.build_id == build_id, Sample.problem >= lo)
        .order_by(Sample.problem)
        .limit(1)
    )
    return await session.scalar(query)


async def files_of(session: AsyncSession, build_id: int, kind: str) -> Sequence[File]:
    query = select(File).where(File.build_id == build_id, File.kind == kind).order_by(File.lo)
    return (await session.scalars(query)).all()


async def written(session: AsyncSession, build_id: int, lo: int, hi: int) -> Sequence[Row[Sample, str, Problem]]:
    """(sample, its file's URI, its problem) of the samples in lo … hi−1 whose texts lie in shards' files, in order."""
    query = (
        select(Sample, File.uri, Problem)
        .join(File, and_(File.id == Sample.file_id, File.kind == "shard"))
        .join(Problem, and_(Problem.build_id == Sample.build_id, Problem.idx == Sample.problem))
        .where(Sample.build_id == build_id, Sample.problem >= lo, Sample.problem < hi)
        .order_by(Sample.problem, Sample.sample_idx)
    )
    return (await session.execute(query)).all()


# The same order in which `written` gives rows, so the position of each is known to both sides.
_REPOINT = text("""
UPDATE samples s SET file_id = :file, row = r.row
FROM (
    SELECT o.problem, o.sample_idx, row_number() OVER (ORDER BY o.problem, o.sample_idx) - 1 AS row
    FROM samples o JOIN files f ON f.id = o.file_id AND f.kind = 'shard'
    WHERE o.build_id = :build AND o.problem >= :lo AND o.problem < :hi
) r
WHERE s.build_id = :build AND s.problem = r.problem AND s.sample_idx = r.sample_idx""")


async def repoint(session: AsyncSession, build_id: int, file_id: int, lo: int, hi: int) -> int:
    """Point the samples that `written` gives at the rows of a compacted file. Returns how many there are."""
    return rows_changed(await session.execute(_REPOINT, {"file": file_id, "build": build_id, "lo": lo, "hi": hi}))


async def policy_revisions(session: AsyncSession, build_id: int) -> list[str]:
    query = select(Sample.policy_revision).where(Sample.build_id == build_id, Sample.policy_revision.is_not(None))
    return sorted(revision for revision in await session.scalars(query.distinct()) if revision)


async def newest_version(session: AsyncSession, build_id: int) -> int | None:
    """Of those that a build has published already, such as before samples of it were asked for again."""
    newest: int | None = await session.scalar(select(func.max(Version.id)).where(Version.build_id == build_id))
    return newest


async def version_counts(session: AsyncSession, build: Build) -> dict[str, int]:
    """Samples that a version was chosen from: by gen_status, and how many its scorer gave a score."""
    found = await totals(session, [build.data_id])
    made = found[build.data_id]
    counts = {"problems": build.problems, **made.gen}
    if build.of_build_id is None:
        return {**counts, "scored": made.scored, "score_error": made.score_error}
    by_status = select(Score.status, func.count()).where(*_scores_of(build)).group_by(Score.status)
    scores = {row[0]: row[1] for row in await session.execute(by_status)}
    return {
        **counts,
        **{status.value: scores.get(status, 0) for status in (ScoreStatus.scored, ScoreStatus.score_error)},
    }


async def why_unscored(session: AsyncSession, build: Build) -> str | None:
    """The commonest reason for which this build's samples have no score."""
    query = (
        select(Score.reason, func.count())
        .where(*_scores_of(build), Score.status == ScoreStatus.score_error, Score.reason.is_not(None))
        .group_by(Score.reason)
        .order_by(func.count().desc(), Score.reason)
        .limit(1)
    )
    row = (await session.execute(query)).one_or_none()
    if row is not None:
        return f"{row[1]} could not be scored: {row[0]}"
    told = select(Event.detail).where(Event.build_id == build.id, Event.kind == "unscored").order_by(Event.id).limit(1)
    return await session.scalar(told)


def _scores_of(build: Build) -> tuple[ColumnElement[bool], ...]:
    return Score.build_id == build.data_id, Score.scorer_id == build.scorer_id


async def add_version(session: AsyncSession, dataset_id: int, file_ids: Sequence[int], **values: Any) -> Version:
    """The next version of a data set; the lock gives each number once."""
    await session.execute(select(Dataset.id).where(Dataset.id == dataset_id).with_for_update(key_share=True))
    newest = select(func.coalesce(func.max(Version.number), 0)).where(Version.dataset_id == dataset_id)
    version = Version(dataset_id=dataset_id, number=(await session.scalar(newest) or 0) + 1, **values)
    session.add(version)
    await session.flush()
    session.add_all(VersionFile(version_id=version.id, file_id=file_id) for file_id in file_ids)
    return version


async def find_version(session: AsyncSession, version_id: int, owner: str) -> tuple[Version, Dataset, Scorer | None]:
    """Raises `NotFound`, also for another owner's version."""
    query = (
        select(Version, Dataset, Scorer)
        .join(Dataset, Dataset.id == Version.dataset_id)
        .outerjoin(Scorer, Scorer.id == Version.scorer_id)
        .where(Version.id == version_id, Dataset.owner == owner, Version.deleted_at.is_(None))
    )
    row = (await session.execute(query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no version {version_id}")
    return row.Version, row.Dataset, row.Scorer


async def version_files(session: AsyncSession, version_id: int) -> Sequence[File]:
    query = (
        select(File)
        .join(VersionFile, VersionFile.file_id == File.id)
        .where(VersionFile.version_id == version_id)
        .order_by(File.lo)
    )
    return (await session.scalars(query)).all()


async def dataset(session: AsyncSession, name: str, owner: str) -> Dataset:
    """Raises `NotFound`, also for another owner's data set."""
    found = await session.scalar(select(Dataset).where(Dataset.name == name, Dataset.owner == owner))
    if found is None:
        raise NotFound(f"there is no data set {name!r}")
    return found


async def datasets(session: AsyncSession, owner: str, after: str, limit: int) -> Sequence[Row[Any]]:
    """(dataset, builds, versions, newest version) by name."""
    living_builds = (Build.dataset_id == Dataset.id, Build.deleted_at.is_(None))
    living_versions = (Version.dataset_id == Dataset.id, Version.deleted_at.is_(None))
    builds = select(func.count()).where(*living_builds).scalar_subquery()
    count = select(func.count()).where(*living_versions).scalar_subquery()
    newest = select(func.max(Version.id)).where(*living_versions).scalar_subquery()
    query = (
        select(Dataset, builds.label("builds"), count.label("versions"), newest.label("newest"))
        .where(Dataset.owner == owner, Dataset.name > after)
        .where(or_(exists().where(*living_builds), exists().where(*living_versions)))
        .order_by(Dataset.name)
        .limit(limit)
    )
    return (await session.execute(query)).all()


async def versions(
    session: AsyncSession, dataset_id: int, below: int | None, limit: int
) -> Sequence[Row[Version, Scorer]]:
    """(version, scorer), newest first."""
    query = select(Version, Scorer).outerjoin(Scorer, Scorer.id == Version.scorer_id)
    query = query.where(Version.dataset_id == dataset_id, Version.deleted_at.is_(None))
    query = query.order_by(Version.number.desc()).limit(limit)
    if below is not None:
        query = query.where(Version.number < literal(below, BigInteger))  # a cursor may hold any number
    return (await session.execute(query)).all()
