"""A build's progress: a live bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from rlt_client.cli.output import console
from rlt_client.jobs import AsyncJobsClient
from rlt_client.schemas.builds import Build
from rlt_client.schemas.common import ScoreStatus

__all__ = ["follow"]

EVERY = 0.5
LINE_EVERY = 5.0  # a log is read later: a line every few seconds is enough


class _Display(Protocol):
    def __call__(self, build: Build) -> None: ...


async def follow(jobs: AsyncJobsClient, build: int, *, quiet: bool = False) -> Build:
    """Show a build until it ends, and return it."""
    with _display(quiet) as show:
        async for current in jobs.watch(build, every=EVERY):
            show(current)
    return current


@contextmanager
def _display(quiet: bool) -> Iterator[_Display]:
    if quiet:
        yield lambda _: None
    elif console().is_terminal:
        with _bar() as progress:
            task = progress.add_task("", total=None, detail="")
            yield lambda build: _update(progress, task, build)
    else:
        yield _lines()


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[detail]}"),
        console=console(),
        expand=True,
    )


def _update(progress: Progress, task: TaskID, build: Build) -> None:
    counts = build.counts
    progress.update(
        task,
        description=f"build {build.id} {build.state}",
        total=counts.samples or None,
        completed=counts.samples - counts.missing,
        detail=_detail(build),
    )


def _detail(build: Build) -> str:
    scored = build.counts.score.get(ScoreStatus.scored, 0)
    parts = [f"{scored:,} scored"]
    if build.tokens_per_second:
        parts.append(f"{build.tokens_per_second:,.0f} tokens/s")
    if build.eta_seconds:
        parts.append(f"{build.eta_seconds:.0f} s left")
    return " · ".join(parts)


def _lines() -> _Display:
    last: tuple[str, float] = ("", 0.0)

    def show(build: Build) -> None:
        nonlocal last
        if build.state == last[0] and time.monotonic() - last[1] < LINE_EVERY:
            return
        last = (build.state, time.monotonic())
        counts = build.counts
        done = counts.samples - counts.missing
        console().print(f"build {build.id} {build.state}: {done:,}/{counts.samples:,} samples, {_detail(build)}")

    return show
