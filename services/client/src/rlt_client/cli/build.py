"""`rlt build …`: data sets from problems."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from rlt_client.cli.choices import As, Kind, PresetName, Select, Shape
from rlt_client.cli.connection import (
    DEFAULT_STATE,
    LONG_PATIENCE,
    PATIENCE,
    JobsURL,
    Key,
    Service,
    StateDir,
    call,
    find_service,
)
from rlt_client.cli.errors import FAILED

if TYPE_CHECKING:
    from rlt_client.jobs import AsyncJobsClient
    from rlt_client.schemas.builds import Build, BuildRequest

__all__ = ["register"]

T = TypeVar("T")
AsJSON = Annotated[bool, typer.Option("--json", help="print JSON")]
BuildID = Annotated[int, typer.Argument(metavar="BUILD", help="number of the build")]


def register(app: typer.Typer) -> None:
    build = typer.Typer(no_args_is_help=True, help="Data sets of scored explanations: create, follow, export.")
    app.add_typer(build, name="build")
    for command in (create, list_builds, show, watch, pause, resume, cancel, export):
        build.command(command.__name__.removesuffix("_builds"))(command)


def create(
    file: Annotated[str, typer.Argument(help="JSON lines with question and answer each; - reads standard input")],
    dataset: Annotated[str, typer.Option(help="name of the data set; made if it is new")],
    n: Annotated[int, typer.Option("-n", min=1, help="explanations of each problem")] = 4,
    kind: Annotated[Kind | None, typer.Option(help="score: the lines carry an explanation each")] = None,
    preset: Annotated[PresetName | None, typer.Option(help="the reward; rlt if left out")] = None,
    select: Annotated[Select, typer.Option(help="which samples become rows")] = Select.best,
    k: Annotated[int | None, typer.Option("-k", min=1, help="rows of each problem, with --select top_k")] = None,
    min_reward: Annotated[float | None, typer.Option(help="leave out what lies below")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of one explanation at most")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0.7 if left out")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    format: Annotated[str | None, typer.Option(help="prompt format; the servers' default if left out")] = None,
    policy: Annotated[str | None, typer.Option(help="served policy; the active one if left out")] = None,
    student: Annotated[str | None, typer.Option(help="served student; the server's default if left out")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 goes first")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="the same key gives the same build again")] = None,
    follow: Annotated[bool, typer.Option("--watch", help="stay until it ends")] = False,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Queue a build over the problems of FILE."""
    from rlt_client.cli.requests import make
    from rlt_client.schemas.builds import BuildRequest, Sampling, Selection

    sampling = make(Sampling, max_tokens=max_tokens, temperature=temperature)
    selection = make(Selection, mode=select, k=k, min_reward=min_reward)

    def request(upload: str) -> BuildRequest:
        return make(
            BuildRequest,
            dataset=dataset,
            kind=kind,
            source={"upload": upload},
            n=n,
            sampling=sampling,
            seed=seed,
            format=format,
            policy=policy,
            student=student,
            spec=preset,
            selection=selection,
            priority=priority,
        )

    request("00000000-0000-0000-0000-000000000000")  # wrong usage is told before anything is sent
    source = sys.stdin.buffer if file == "-" else Path(file)

    async def submit(jobs: AsyncJobsClient) -> Build:
        upload = await jobs.upload(source)
        return await jobs.create_build(request(str(upload.id)), idempotency_key=idempotency_key)

    service = find_service("jobs", jobs_url, key, state)
    build = _call(service, submit)
    if follow:
        _follow(service, build.id, as_json=as_json)
    else:
        _show(build, as_json=as_json)


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

    async def fetch(jobs: AsyncJobsClient) -> list[Build]:
        found: list[Build] = []
        async for build in jobs.builds(page=min(limit, 100)):
            found.append(build)
            if len(found) == limit:
                break
        return found

    builds = _call(find_service("jobs", jobs_url, key, state), fetch)
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


def watch(
    build: BuildID, as_json: AsJSON = False, jobs_url: JobsURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """Follow a build until it ends. Exits 1 if it failed or was cancelled."""
    _follow(find_service("jobs", jobs_url, key, state), build, as_json=as_json)


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
        done = _call(service, lambda jobs: exported(jobs, wanted), patience=LONG_PATIENCE)
    else:
        fetch = partial(_call, service, patience=LONG_PATIENCE)
        done = pushed(fetch, wanted, push, private=private, revision=revision)
    typer.echo(done.json() if as_json else str(done))


def _act(method: str, build: int, as_json: bool, service: Service) -> None:
    def do(jobs: AsyncJobsClient) -> Awaitable[Build]:
        answer: Awaitable[Build] = getattr(jobs, method)(build)
        return answer

    _show(_call(service, do), as_json=as_json)


def _show(build: Build, *, as_json: bool) -> None:
    from rlt_client.cli.builds import card
    from rlt_client.cli.output import console

    if as_json:
        typer.echo(build.model_dump_json(indent=2, by_alias=True))
    else:
        console().print(card(build))


def _follow(service: Service, build: int, *, as_json: bool) -> None:
    from rlt_client.cli.progress import follow

    async def go(jobs: AsyncJobsClient) -> Build:
        return await follow(jobs, build, quiet=as_json)

    ended = _call(service, go, patience=LONG_PATIENCE)
    _show(ended, as_json=as_json)
    if ended.state != "done":
        raise typer.Exit(FAILED)


def _call(service: Service, work: Callable[[AsyncJobsClient], Awaitable[T]], *, patience: float = PATIENCE) -> T:
    from rlt_client.jobs import AsyncJobsClient

    return call(AsyncJobsClient, service, work, patience=patience)
