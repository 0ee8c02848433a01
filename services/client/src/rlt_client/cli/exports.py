"""How a version becomes a file, a folder, or a data set of the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlt_client.cli import hub
from rlt_client.cli.errors import CommandFailed
from rlt_client.cli.jobs import version_meant
from rlt_client.jobs import AsyncJobsClient
from rlt_client.schemas.builds import ExportFormat, ExportShape, Version

__all__ = ["Done", "Wanted", "export_version", "exported", "pushed"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to export: the version of a build, or a version; where to; as what."""

    build: int | None
    version: int | None
    to: Path | None
    kind: str
    shape: str


@dataclass(frozen=True, slots=True)
class Done:
    """Where it is now, and the bytes fetched."""

    version: int
    bytes: int
    path: str | None = None
    url: str | None = None

    def json(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    def __str__(self) -> str:
        return f"{self.url or self.path}  {self.bytes:,} bytes"


async def exported(jobs: AsyncJobsClient, wanted: Wanted) -> Done:
    """Raises `CommandFailed`: the build has no version yet, or the folder is there and not empty."""
    version = await _find_version(jobs, wanted.build, wanted.version)
    path, size = await _written(jobs, version, wanted.to, wanted.kind, wanted.shape)
    return Done(version.id, size, path=f"{path}{'/' if path.is_dir() else ''}")


def pushed(
    fetch: Callable[[Callable[[AsyncJobsClient], Awaitable[Any]]], Any],
    wanted: Wanted,
    repo: str,
    *,
    private: bool,
    revision: str | None,
) -> Done:
    """Export a folder, which stays only where `wanted` names one, and upload it.

    Args:
        fetch: gives what a function makes of a client of the jobs service.

    Raises:
        CommandFailed: as `exported`; the hub refuses.
    """
    hub.require()
    with ExitStack() as stack:
        folder = wanted.to or Path(stack.enter_context(TemporaryDirectory(prefix="rlt-push-"))) / "data"
        version: Version = fetch(lambda jobs: _find_version(jobs, wanted.build, wanted.version))
        here = replace(wanted, build=None, version=version.id, to=folder)
        done: Done = fetch(lambda jobs: exported(jobs, here))
        message = f"{version.dataset}, version {version.number}"
        url = hub.push(folder, repo, private=private, revision=revision, message=message)
    return replace(done, path=done.path if wanted.to else None, url=url)


async def export_version(
    jobs: AsyncJobsClient, build: int | None, version: int | None, to: Path | None, kind: str, shape: str
) -> tuple[Path, int]:
    """Fetch the version of a build, or a version. Returns the file or folder, and the bytes fetched.

    Raises:
        CommandFailed: the build has no version yet, or the folder is there and not empty.
    """
    return await _written(jobs, await _find_version(jobs, build, version), to, kind, shape)


async def _written(jobs: AsyncJobsClient, found: Version, to: Path | None, kind: str, shape: str) -> tuple[Path, int]:
    target = to or Path(f"{found.dataset}-v{found.number}{'' if kind == 'hf' else f'.{kind}'}")
    _make_parent(target)
    if kind != "hf" or target.suffix == ".zip":
        size = await jobs.export(found.id, target, format=ExportFormat(kind), shape=ExportShape(shape))
        return target, size
    return target, await _export_folder(jobs, found.id, target, ExportShape(shape))


async def _find_version(jobs: AsyncJobsClient, build: int | None, version: int | None) -> Version:
    """Raises `CommandFailed`: the build has no version yet."""
    return await jobs.version(await version_meant(jobs, build, version))


def _make_parent(target: Path) -> None:
    target.absolute().parent.mkdir(parents=True, exist_ok=True)


async def _export_folder(jobs: AsyncJobsClient, version: int, folder: Path, shape: ExportShape) -> int:
    _refuse_occupied(folder)
    archive = folder.with_name(f".{folder.name}.zip")
    try:
        size = await jobs.export(version, archive, format=ExportFormat.hf, shape=shape)
        _unpack(archive, folder)
    finally:
        archive.unlink(missing_ok=True)
    return size


def _refuse_occupied(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommandFailed(f"{folder} is there already and not empty")


def _unpack(archive: Path, folder: Path) -> None:
    """The folder appears whole or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(part)  # zipfile drops absolute paths and `..` itself
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
