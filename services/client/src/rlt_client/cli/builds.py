"""How builds are shown, and how a version becomes a file or a folder."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlt_client.cli.errors import CommandFailed
from rlt_client.jobs import AsyncJobsClient
from rlt_client.schemas.builds import Build, BuildState, ExportFormat, ExportShape
from rlt_client.schemas.common import GenStatus, ScoreStatus

__all__ = ["card", "export_version", "table"]

COLOURS = {
    BuildState.done: "green",
    BuildState.failed: "red",
    BuildState.cancelled: "yellow",
    BuildState.paused: "yellow",
}


def table(builds: Iterable[Build]) -> Table:
    rows = Table("build", "data set", "state", "samples", "scored", "version", "created", box=None, header_style="bold")
    for build in builds:
        counts = build.counts
        rows.add_row(
            str(build.id),
            build.dataset,
            _state(build),
            f"{counts.samples - counts.missing:,}/{counts.samples:,}",
            f"{counts.score.get(ScoreStatus.scored, 0):,}",
            str(build.version or ""),
            f"{build.created_at:%Y-%m-%d %H:%M}",
        )
    return rows


def card(build: Build) -> RenderableType:
    """Everything that a person asks of one build."""
    counts = build.counts
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim")
    rows.add_row("state", _state(build))
    rows.add_row("data set", build.dataset + (f", version {build.version}" if build.version else ""))
    rows.add_row("problems", f"{counts.problems:,} × {build.n} samples" + _refused(build))
    rows.add_row("generated", _breakdown(counts.gen, GenStatus.complete))
    rows.add_row("scored", _breakdown(counts.score, ScoreStatus.scored))
    rows.add_row("tokens", f"{counts.prompt_tokens:,} read, {counts.completion_tokens:,} written" + _speed(build))
    lines: list[RenderableType] = [Text(f"build {build.id}", style="bold"), rows]
    if build.error is not None:
        lines.append(Text(f"{build.error.type}: {build.error.detail or build.error.title}", style="red"))
    return Group(*lines)


def _state(build: Build) -> Text:
    return Text(build.state, style=COLOURS.get(build.state, "cyan"))


def _refused(build: Build) -> str:
    bad = build.counts.bad_rows
    return f"; {bad:,} rows of the source were refused" if bad else ""


def _speed(build: Build) -> str:
    return f", {build.tokens_per_second:,.0f}/s" if build.tokens_per_second else ""


def _breakdown(counts: dict[GenStatus, int] | dict[ScoreStatus, int], good: GenStatus | ScoreStatus) -> Text:
    text = Text()
    for status, count in sorted(counts.items(), key=lambda each: each[0] != good):
        if count:
            text.append(f"{', ' if text else ''}{count:,} {status}", style="" if status == good else "yellow")
    return text or Text("none yet")


async def export_version(
    jobs: AsyncJobsClient, build: int | None, version: int | None, to: Path | None, kind: str, shape: str
) -> tuple[Path, int]:
    """Fetch the version of a build, or a version. Returns the file or folder, and the bytes fetched.

    Raises:
        CommandFailed: the build has no version yet, or the folder is there and not empty.
    """
    number = version if build is None else await _version_of(jobs, build)
    found = await jobs.version(number or 0)
    target = to or Path(f"{found.dataset}-v{found.number}{'' if kind == 'hf' else f'.{kind}'}")
    _make_parent(target)
    if kind != "hf" or target.suffix == ".zip":
        size = await jobs.export(found.id, target, format=ExportFormat(kind), shape=ExportShape(shape))
        return target, size
    return target, await _export_folder(jobs, found.id, target, ExportShape(shape))


def _make_parent(target: Path) -> None:
    target.absolute().parent.mkdir(parents=True, exist_ok=True)


async def _version_of(jobs: AsyncJobsClient, build: int) -> int:
    found = await jobs.build(build)
    if found.version is None:
        raise CommandFailed(f"build {build} has no version yet: it is {found.state}")
    return found.version


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
