"""A build's progress: a living bar in a terminal, a line now and then elsewhere, a JSON line a change for scripts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rlt_client.cli.output import console, safe
from rlt_client.jobs import ENDED, AsyncJobsClient
from rlt_client.schemas.builds import Build
from rlt_client.schemas.common import GenStatus, ScoreStatus

__all__ = ["follow"]

EVERY: Final = 1.0  # seconds between two looks where the service has no stream
LINE_EVERY: Final = 5.0  # a log is read later: a line every few seconds is enough
PER_SECOND: Final = 8  # redraws, for the spinner
STATES: Final = {
    GenStatus.complete: "green",
    GenStatus.truncated: "yellow",
    GenStatus.malformed: "magenta",
    GenStatus.context_overflow: "magenta",
    GenStatus.engine_error: "red",
    GenStatus.cancelled: "red",
}

Show = Callable[[Build], None]


async def follow(jobs: AsyncJobsClient, build: int, *, as_json: bool = False) -> Build:
    """Show a build until it ends, and return it."""
    with _display(as_json) as show:
        async for current in jobs.watch(build, every=EVERY):
            show(current)
    return current


@contextmanager
def _display(as_json: bool) -> Iterator[Show]:
    if as_json:
        yield lambda build: print(build.model_dump_json(by_alias=True), flush=True)
    elif console().is_terminal:
        bar = _Bar()
        with Live(bar, console=console(), refresh_per_second=PER_SECOND, transient=True):
            yield bar.show
    else:
        yield _Lines().show


class _Bar:
    """How far it is, how samples ended, and how fast it goes, or why it does not."""

    def __init__(self) -> None:
        self._build: Build | None = None
        self._spinner = Spinner("dots", style="cyan")

    def show(self, build: Build) -> None:
        self._build = build

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        build = self._build
        if build is None:
            yield Text("asking …", style="dim")
            return
        head = Table.grid(padding=(0, 1))
        name, done = f"build {build.id} {build.state}", _done(build)
        head.add_row(self._spinner, name, _segments(build, options.max_width - len(name) - len(done) - 5), done)
        yield head
        if states := _states(build):
            yield Text("  ") + states
        if stalled := _stalled(build):
            yield Text(f"  {stalled}", style="bold white on red")
            return
        if pace := _pace(build):
            yield Text(f"  {pace}", style="dim")
        if build.note:
            yield Text(f"  {safe(build.note)}", style="yellow")


def _segments(build: Build, width: int) -> Text:
    """The samples as one bar, a colour a state."""
    width, samples = max(width, 10), max(build.counts.samples, 1)
    text, cells, ended = Text(), 0, 0
    for status, colour in STATES.items():
        ended += build.counts.gen.get(status, 0)
        upto = min(width, ended * width // samples)
        text.append("━" * (upto - cells), style=colour)
        cells = max(cells, upto)
    return text.append("━" * (width - cells), style="bright_black")


def _done(build: Build) -> str:
    counts = build.counts
    if not counts.samples:
        return f"{counts.problems:,} problems"
    ended = counts.samples - counts.missing
    return f"{ended:,}/{counts.samples:,} {ended / counts.samples:.0%}"


def _states(build: Build) -> Text:
    parts = [(f"{count:,} {status}", STATES[status]) for status in STATES if (count := build.counts.gen.get(status, 0))]
    scores = {ScoreStatus.scored: "green", ScoreStatus.score_error: "red"}
    parts += [
        (f"{count:,} {status}", scores[status]) for status in scores if (count := build.counts.score.get(status, 0))
    ]
    return Text(" · ").join(Text(text, style=style) for text, style in parts)


def _pace(build: Build) -> str:
    parts = []
    if build.tokens_per_second:
        parts.append(f"{build.tokens_per_second:,.0f} tokens/s")
    if build.eta_seconds:
        parts.append(f"{_span(build.eta_seconds)} left")
    return " · ".join(parts)


def _stalled(build: Build) -> str:
    if build.stalled_since is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - build.stalled_since).total_seconds())
    return f"STALLED for {_span(seconds)}: {safe(build.note or 'nothing can be made')}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Lines:
    """A line when the state changes, when it stalls or goes on, at the end, and every few seconds."""

    def __init__(self) -> None:
        self._last: tuple[str, bool] | None = None
        self._at = 0.0

    def show(self, build: Build) -> None:
        now = (build.state, build.stalled_since is not None)
        due = time.monotonic() - self._at >= LINE_EVERY
        if now == self._last and not due and build.state not in ENDED:
            return
        self._last, self._at = now, time.monotonic()
        parts = [_done(build), _states(build).plain, _stalled(build) or _pace(build)]
        line = f"build {build.id} {build.state}: {' · '.join(filter(None, parts))}"
        console().print(Text(line), soft_wrap=True)
