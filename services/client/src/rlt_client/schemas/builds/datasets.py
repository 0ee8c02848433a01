"""Data sets, and the versions that builds publish."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from rlt_client.schemas.builds.replies import ScorerRef
from rlt_client.schemas.builds.requests import Selection
from rlt_client.schemas.common import Reply

__all__ = ["Dataset", "DatasetPage", "FileRef", "Version", "VersionPage"]


class Dataset(Reply):
    name: str
    created_at: datetime
    builds: int
    versions: int
    latest_version: int | None = Field(description="id of the newest version")


class DatasetPage(Reply):
    items: list[Dataset]
    next: str | None


class FileRef(Reply):
    uri: str
    rows: int
    bytes: int
    sha256: str


class Version(Reply):
    """An immutable list of rows. The manifest holds (build, problem, sample_idx, rank) of each, and its place."""

    id: int
    dataset: str
    number: int = Field(description="1, 2, … within the dataset")
    parent: int | None
    build: int | None
    rows: int
    selection: Selection
    scorer: ScorerRef | None
    manifest: FileRef
    files: list[FileRef]
    counts: dict[str, int]
    lineage: dict[str, Any] = Field(
        description="policy revisions, format, sampling, seed, reward spec and versions of the code"
    )
    created_at: datetime


class VersionPage(Reply):
    items: list[Version]
    next: str | None
