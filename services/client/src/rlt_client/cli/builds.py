"""How builds are shown."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlt_client.schemas.builds import Build, BuildState
from rlt_client.schemas.common import GenStatus, ScoreStatus

__all__ = ["card", "table"]

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
