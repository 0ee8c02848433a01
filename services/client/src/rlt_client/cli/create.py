"""`rlt build create`: a file, a path of the service's, or a data set of the hub becomes a build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlt_client.cli.choices import Kind, PresetName, Select, SourceKind, TruncatedName
from rlt_client.cli.connection import DEFAULT_STATE, JobsURL, Key, StateDir, find_service
from rlt_client.cli.jobs import AsJSON, Follow, ask, print_json, submit
from rlt_client.cli.selecting import AtLeast, AtMost, Context, MinReward, Mode, Rows, Weight, WithoutFlag, selection

if TYPE_CHECKING:
    from rlt_client.jobs import AsyncJobsClient
    from rlt_client.schemas.builds import Build, BuildRequest, DryRun

__all__ = ["create"]

_SOURCE = "Source"
NO_UPLOAD = "00000000-0000-0000-0000-000000000000"  # stands for what is not sent yet, while the rest is checked


def create(
    dataset: Annotated[str, typer.Option(help="name of the data set; made if it is new")],
    file: Annotated[
        str | None, typer.Argument(help="JSON lines, CSV or Parquet; - reads JSON lines from standard input")
    ] = None,
    path: Annotated[
        str | None, typer.Option(help="a file that the service reads itself", rich_help_panel=_SOURCE)
    ] = None,
    hub: Annotated[
        str | None, typer.Option(metavar="NAME", help="a data set of the Hugging Face hub", rich_help_panel=_SOURCE)
    ] = None,
    config: Annotated[str | None, typer.Option(help="with --hub: its configuration", rich_help_panel=_SOURCE)] = None,
    split: Annotated[str | None, typer.Option(help="with --hub: train if left out", rich_help_panel=_SOURCE)] = None,
    revision: Annotated[
        str | None, typer.Option(help="with --hub: branch, tag or commit", rich_help_panel=_SOURCE)
    ] = None,
    file_format: Annotated[
        SourceKind | None,
        typer.Option("--file-format", help="told by name or content if left out", rich_help_panel=_SOURCE),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN",
            help="question, answer, system or explanation is that column",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="rows read at most", rich_help_panel=_SOURCE)] = None,
    dedup: Annotated[
        bool, typer.Option("--dedup/--no-dedup", help="leave out rows that were there before", rich_help_panel=_SOURCE)
    ] = True,
    n: Annotated[int | None, typer.Option("-n", min=1, help="explanations of each problem; 4 if left out")] = None,
    kind: Annotated[Kind | None, typer.Option(help="score: the rows carry an explanation each")] = None,
    preset: Annotated[PresetName | None, typer.Option(help="the reward; rlt if left out")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of one explanation at most")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0.7 if left out")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    truncated: Annotated[
        TruncatedName | None, typer.Option(help="explanations that were cut off; keep if left out")
    ] = None,
    keep_tokens: Annotated[
        bool, typer.Option("--keep-tokens", help="keep ids and log-probs, so that KL can be computed again")
    ] = False,
    format: Annotated[str | None, typer.Option(help="prompt format; the servers' default if left out")] = None,
    policy: Annotated[str | None, typer.Option(help="served policy; the active one if left out")] = None,
    student: Annotated[str | None, typer.Option(help="served student; the server's default if left out")] = None,
    select: Mode = Select.best,
    k: Rows = None,
    min_reward: MinReward = None,
    at_least: AtLeast = None,
    at_most: AtMost = None,
    context: Context = None,
    without_flag: WithoutFlag = None,
    weight: Weight = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 goes first")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="the same key gives the same build again")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it would do, and make nothing")] = False,
    follow: Follow = False,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Queue a build over the problems of FILE, of a path, or of a data set of the hub."""
    from rlt_client.cli.requests import make, parse_pairs
    from rlt_client.schemas.builds import BuildRequest, Sampling

    if sum(each is not None for each in (file, path, hub)) != 1:
        raise typer.BadParameter("give exactly one of FILE, --path and --hub")
    if hub is None and (config or split or revision):
        raise typer.BadParameter("--config, --split and --revision go with --hub")
    columns = parse_pairs("--column", column)
    chosen = selection(select, k, min_reward, at_least, at_most, context, without_flag, weight)
    sampling = make(Sampling, max_tokens=max_tokens, temperature=temperature)

    def request(upload: str | None) -> BuildRequest:
        named = {"name": hub, "config": config, "split": split, "revision": revision}
        source = {
            "upload": upload,
            "path": path,
            "hub": None if hub is None else _present(named),
            "format": file_format,
            "columns": columns,
            "limit": limit,
        }
        return make(
            BuildRequest,
            dataset=dataset,
            kind=kind,
            source=_present(source),
            n=n or (1 if kind is Kind.score else None),
            sampling=sampling,
            seed=seed,
            format=format,
            policy=policy,
            student=student,
            spec=preset,
            selection=chosen,
            keep_tokens=keep_tokens,
            deduplicate=dedup,
            truncated=truncated,
            priority=priority,
        )

    request(NO_UPLOAD if file else None)  # wrong usage is told before anything is sent
    service = find_service("jobs", jobs_url, key, state)

    async def uploaded(jobs: AsyncJobsClient) -> BuildRequest:
        if file is None:
            return request(None)
        name = "standard-input.jsonl" if file == "-" else None
        return request(str((await jobs.upload(sys.stdin.buffer if file == "-" else Path(file), name=name)).id))

    async def send(jobs: AsyncJobsClient) -> Build:
        return await jobs.create_build(await uploaded(jobs), idempotency_key=idempotency_key)

    async def try_out(jobs: AsyncJobsClient) -> DryRun:
        asked = await uploaded(jobs)
        try:
            return await jobs.dry_run(asked)
        finally:
            if asked.source is not None and asked.source.upload is not None:
                await jobs.delete_upload(asked.source.upload)

    if dry_run:
        _tell(ask(service, try_out), as_json=as_json)
    else:
        submit(service, send, watch=follow, as_json=as_json)


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _tell(found: DryRun, *, as_json: bool) -> None:
    from rlt_client.cli.output import console
    from rlt_client.cli.reported import dry_run

    if as_json:
        print_json(found)
    else:
        console().print(dry_run(found))
