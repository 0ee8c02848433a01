"""How builds are shown."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlt_client.cli.output import safe
from rlt_client.schemas.builds import Build, BuildState, Version
from rlt_client.schemas.common import GenStatus, ScoreStatus

__all__ = ["card", "table", "version_card"]

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
    if counts.samples:
        rows.add_row("generated", _breakdown(counts.gen, GenStatus.complete))
        rows.add_row("scored", _breakdown(counts.score, ScoreStatus.scored))
        rows.add_row("tokens", f"{counts.prompt_tokens:,} read, {counts.completion_tokens:,} written" + _speed(build))
    title = f"build {build.id}" + (f" · {build.kind}" if build.kind not in ("generate", "score") else "")
    title += f" of build {build.of_build}" if build.of_build is not None else ""
    lines: list[RenderableType] = [Text(title, style="bold"), rows]
    if build.stalled_since is not None:
        since = f"{build.stalled_since:%Y-%m-%d %H:%M:%S}"
        lines.append(Text(f"STALLED since {since}: {safe(build.note or 'unknown')}", style="bold white on red"))
    elif build.note:
        lines.append(Text(safe(build.note), style="yellow"))
    if build.error is not None:
        lines.append(Text(f"{build.error.type}: {build.error.detail or build.error.title}", style="red"))
    return Group(*lines)


def _state(build: Build) -> Text:
    return Text(build.state, style=COLOURS.get(build.state, "cyan"))


def _refused(build: Build) -> str:
    bad, twice = build.counts.bad_rows, build.counts.duplicates
    parts = [f"{bad:,} refused"] * bool(bad) + [f"{twice:,} were there before"] * bool(twice)
    return f"; rows of the source: {', '.join(parts)}" if parts else ""


def _speed(build: Build) -> str:
    return f", {build.tokens_per_second:,.0f}/s" if build.tokens_per_second else ""


def _breakdown(counts: dict[GenStatus, int] | dict[ScoreStatus, int], good: GenStatus | ScoreStatus) -> Text:
    text = Text()
    for status, count in sorted(counts.items(), key=lambda each: each[0] != good):
        if count:
            text.append(f"{', ' if text else ''}{count:,} {status}", style="" if status == good else "yellow")
    return text or Text("none yet")


def version_card(version: Version) -> RenderableType:
    """What a version holds, how it was chosen, and where it comes from."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim")
    rows.add_row("data set", f"{version.dataset}, number {version.number}")
    rows.add_row("rows", f"{version.rows:,}")
    rows.add_row("made by", f"build {version.build}" + (f", from version {version.parent}" if version.parent else ""))
    rows.add_row("selection", version.selection.model_dump_json(exclude_defaults=True, exclude_none=True))
    if version.scorer is not None:
        rows.add_row("scored by", f"{version.scorer.student} ({version.scorer.student_revision})")
    rows.add_row("of samples", ", ".join(f"{count:,} {name}" for name, count in version.counts.items() if count))
    size = version.manifest.bytes + sum(file.bytes for file in version.files)
    rows.add_row("files", f"{len(version.files) + 1}, {size:,} bytes")
    return Group(Text(f"version {version.id}", style="bold"), rows)
