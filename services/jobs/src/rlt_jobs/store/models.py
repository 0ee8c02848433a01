"""Tables of what is stored: files, texts on their way into one, uploads, versions."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from rlt_jobs.database import Base

__all__ = ["ExportFile", "File", "Spool", "Upload", "Version", "VersionFile"]


class File(Base):
    """One sealed file. It may hold rows that no sample points at; no sample points at a row that it lacks."""

    __tablename__ = "files"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    build_id: Mapped[int] = mapped_column(ForeignKey("builds.id"), index=True)
    kind: Mapped[str]
    """`shard`: the texts of one lease. `compact`: all traces of the problems `lo … hi−1`, sorted."""
    uri: Mapped[str] = mapped_column(unique=True)
    lo: Mapped[int]
    hi: Mapped[int]
    rows: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Spool(Base):
    """Texts of samples that are flushed and not yet sealed, zstd. Empty when nothing runs."""

    __tablename__ = "spool"
    __table_args__ = (
        {"postgresql_with": {"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "5000"}},
    )

    build_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    problem: Mapped[int] = mapped_column(primary_key=True)
    sample_idx: Mapped[int] = mapped_column(primary_key=True)
    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id", ondelete="CASCADE"), index=True)
    texts: Mapped[bytes]


class Upload(Base):
    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_owner", "owner", "created_at", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str | None]
    uri: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    format: Mapped[str] = mapped_column(server_default="jsonl")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]


class Version(Base):
    """An immutable list of rows. Membership is the manifest file, not a column."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("dataset_id", "number"),
        # a build publishes once; what is derived from a version later has a parent
        Index("uq_versions_published", "build_id", unique=True, postgresql_where=text("parent_id IS NULL")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"))
    number: Mapped[int]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    build_id: Mapped[int | None] = mapped_column(ForeignKey("builds.id"), index=True)
    selection: Mapped[dict[str, Any]]
    scorer_id: Mapped[int | None] = mapped_column(ForeignKey("scorers.id"))
    manifest_uri: Mapped[str]
    manifest_sha256: Mapped[str]
    manifest_bytes: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int] = mapped_column(BigInteger)
    counts: Mapped[dict[str, Any]]
    lineage: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]


class VersionFile(Base):
    """Which files a version reads, so that none of them is removed while it lives."""

    __tablename__ = "version_files"

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    file_id: Mapped[int] = mapped_column(ForeignKey("files.id"), primary_key=True, index=True)


class ExportFile(Base):
    """An export that was written once and is kept for whoever asks again, or goes on with a broken download."""

    __tablename__ = "exports"
    __table_args__ = (UniqueConstraint("version_id", "format", "shape"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"))
    format: Mapped[str]
    shape: Mapped[str]
    uri: Mapped[str] = mapped_column(unique=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    asked_at: Mapped[datetime] = mapped_column(server_default=func.now())
