"""`rlt build …`: data sets from problems."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlt_client.cli.choices import As, Scoring, Shape, Sort, Status
from rlt_client.cli.connection import DEFAULT_STATE, LONG_PATIENCE, JobsURL, Key, Service, StateDir, find_service
from rlt_client.cli.create import create
from rlt_client.cli.derive import rerank, rescore, retry
from rlt_client.cli.jobs import AsJSON, BuildID, Yes, ask, confirm, first, print_json
from rlt_client.cli.jobs import follow as follow_build
from rlt_client.cli.jobs import show as show_build

if TYPE_CHECKING:
    from rlt_client.jobs import AsyncJobsClient
    from rlt_client.schemas.builds import Build, SampleRow

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    build = typer.Typer(no_args_is_help=True, help="Data sets of scored explanations: create, follow, export.")
    app.add_typer(build, name="build")
    build.command("list")(list_builds)
    commands: tuple[Any, ...] = (create, show, watch, report, events, samples, pause, resume, cancel)
    for command in (*commands, priority, retry, rescore, rerank, export, delete):
        build.command()(command)


def list_builds(
    limit: Annotated[int, typer.Option(min=1, help="at most this many, newest first")] = 20,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Your builds, newest first."""
    from rlt_client.cli.builds import table
    from rlt_client.cli.output import console

    service = find_service("jobs", jobs_url, key, state)
    builds = ask(service, lambda jobs: first(jobs.builds(page=min(limit, 100)), limit))
    if as_json:
        for build in builds:
            typer.echo(build.model_dump_json(by_alias=True))
    else:
        console().print(table(builds) if builds else "no builds yet")


def show(
    build: BuildID, as_json: AsJSON = False, jobs_url: JobsURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """One build, with its counts."""
    _act("build", build, as_json, find_service("jobs", jobs_url, key, state))


def watch(
    build: BuildID, as_json: AsJSON = False, jobs_url: JobsURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """Follow a build until it ends; with --json a line for each change. Exits 1 if it failed or was cancelled."""
    follow_build(find_service("jobs", jobs_url, key, state), build, as_json=as_json)


def report(
    build: BuildID, as_json: AsJSON = False, jobs_url: JobsURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """Why samples failed, where they were cut off, how rewards spread."""
    found = ask(find_service("jobs", jobs_url, key, state), lambda jobs: jobs.report(build))
    if as_json:
        print_json(found)
        return
    from rlt_client.cli.output import console
    from rlt_client.cli.reported import report as shown

    console().print(shown(found))


def events(
    build: BuildID,
    limit: Annotated[int, typer.Option(min=1, help="at most this many")] = 100,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """What happened to a build, oldest first: refused rows of its source with their lines, stalls, retries."""
    service = find_service("jobs", jobs_url, key, state)
    found = ask(service, lambda jobs: first(jobs.events(build, page=min(limit, 500)), limit))
    if as_json:
        for event in found:
            typer.echo(event.model_dump_json(by_alias=True))
        return
    from rlt_client.cli.output import console
    from rlt_client.cli.reported import events as shown

    console().print(shown(found) if found else "nothing out of the ordinary")


def samples(
    build: BuildID,
    sort: Annotated[Sort, typer.Option(help="by problem, by reward, or by tokens")] = Sort.by_index,
    descending: Annotated[bool, typer.Option("--descending", "-r", help="the highest first")] = False,
    status: Annotated[Status | None, typer.Option(help="only what ended so")] = None,
    scoring: Annotated[Scoring | None, typer.Option(help="only what was scored so")] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most this many")] = 5,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Some samples with their texts."""
    from rlt_client.schemas.builds import SampleSort
    from rlt_client.schemas.common import GenStatus, ScoreStatus

    async def fetch(jobs: AsyncJobsClient) -> list[SampleRow]:
        rows = jobs.samples(
            build,
            sort=SampleSort(sort.value),
            descending=descending,
            gen_status=GenStatus(status.value) if status else None,
            score_status=ScoreStatus(scoring.value) if scoring else None,
            texts=True,
            page=min(limit, 100),
        )
        return await first(rows, limit)

    found = ask(find_service("jobs", jobs_url, key, state), fetch)
    if as_json:
        for row in found:
            typer.echo(row.model_dump_json(by_alias=True))
        return
    from rlt_client.cli.output import console
    from rlt_client.cli.reported import sample

    console().print(*(map(sample, found) if found else ["no such samples"]), sep="\n")


def pause(
    build: BuildID, as_json: AsJSON = False, jobs_url: JobsURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """Let a build rest; what is done stays."""
    _act("pause", build, as_json, find_service("jobs", jobs_url, key, state))


def resume(
    build: BuildID, as_json: AsJSON = False, jobs_url: JobsURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """Go on with a paused or failed build."""
    _act("resume", build, as_json, find_service("jobs", jobs_url, key, state))


def cancel(
    build: BuildID, as_json: AsJSON = False, jobs_url: JobsURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """End a build; what is done stays."""
    _act("cancel", build, as_json, find_service("jobs", jobs_url, key, state))


def priority(
    build: BuildID,
    number: Annotated[int, typer.Argument(metavar="PRIORITY", min=0, max=9, help="9 goes first")],
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Let a build go before others, or after them."""
    service = find_service("jobs", jobs_url, key, state)
    show_build(ask(service, lambda jobs: jobs.set_priority(build, number)), as_json=as_json)


def delete(
    build: BuildID, yes: Yes = False, jobs_url: JobsURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """Remove a build that has ended, with its samples. Versions that read from it must go first."""
    confirm(f"delete build {build}", yes)
    ask(find_service("jobs", jobs_url, key, state), lambda jobs: jobs.delete_build(build))
    typer.echo(f"build {build} is deleted")


def export(
    build: Annotated[int | None, typer.Argument(help="number of the build whose version is wanted")] = None,
    version: Annotated[int | None, typer.Option(help="or the number of a version")] = None,
    to: Annotated[Path | None, typer.Option("--to", "-o", help="file, or with hf: folder")] = None,
    kind: Annotated[
        As | None, typer.Option("--as", help="hf is a folder for datasets.load_dataset; jsonl if left out")
    ] = None,
    shape: Annotated[Shape, typer.Option(help="chat messages that train a student, or every column")] = Shape.messages,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="upload it to the Hugging Face hub")] = None,
    private: Annotated[bool, typer.Option("--private", help="with --push: only its owner sees it")] = False,
    revision: Annotated[str | None, typer.Option(help="with --push: a branch; main if left out")] = None,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Write a version of a data set to disk, or to the Hugging Face hub. What broke off goes on when called again."""
    if (build is None) == (version is None):
        raise typer.BadParameter("give a build or --version")
    if push is not None and kind not in (None, As.hf):
        raise typer.BadParameter("--push uploads a Hugging Face folder: leave --as out")
    if push is None and (private or revision is not None):
        raise typer.BadParameter("--private and --revision go with --push")
    from rlt_client.cli.exports import Wanted, exported, pushed

    wanted = Wanted(build, version, to, "hf" if push else (kind or As.jsonl).value, shape.value)
    service = find_service("jobs", jobs_url, key, state)
    if push is None:
        done = ask(service, lambda jobs: exported(jobs, wanted), patience=LONG_PATIENCE)
    else:
        fetch = partial(ask, service, patience=LONG_PATIENCE)
        done = pushed(fetch, wanted, push, private=private, revision=revision)
    typer.echo(done.json() if as_json else str(done))


def _act(method: str, build: int, as_json: bool, service: Service) -> None:
    def do(jobs: AsyncJobsClient) -> Awaitable[Build]:
        answer: Awaitable[Build] = getattr(jobs, method)(build)
        return answer

    show_build(ask(service, do), as_json=as_json)
