"""`rlt build retry | rescore | rerank`: more from samples that were made already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlt_client.cli.choices import PresetName, Select, Status
from rlt_client.cli.connection import DEFAULT_STATE, JobsURL, Key, StateDir, find_service
from rlt_client.cli.jobs import AsJSON, BuildID, Follow, submit, version_meant
from rlt_client.cli.selecting import AtLeast, AtMost, Context, MinReward, Mode, Rows, Weight, WithoutFlag, selection

if TYPE_CHECKING:
    from rlt_client.jobs import AsyncJobsClient
    from rlt_client.schemas.builds import Build

__all__ = ["rerank", "rescore", "retry"]


def retry(
    build: BuildID,
    status: Annotated[
        list[Status] | None, typer.Option(help="samples that ended so; engine_error and cancelled if left out")
    ] = None,
    score_errors: Annotated[
        bool, typer.Option("--score-errors", help="score again what could not be scored, from the stored texts")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="another budget, such as for truncated ones")] = None,
    follow: Follow = False,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Ask again for samples that failed. The build publishes another version at its end."""
    from rlt_client.cli.requests import make
    from rlt_client.schemas.builds import RetryRequest

    request = make(RetryRequest, gen_status=status or None, score_errors=score_errors, max_tokens=max_tokens)
    service = find_service("jobs", jobs_url, key, state)
    submit(service, lambda jobs: jobs.retry(build, request), watch=follow, as_json=as_json)


def rescore(
    build: BuildID,
    student: Annotated[str | None, typer.Option(help="served student; the server's default if left out")] = None,
    preset: Annotated[PresetName | None, typer.Option(help="the reward; rlt if left out")] = None,
    format: Annotated[str | None, typer.Option(help="prompt format; that of the build if left out")] = None,
    select: Mode = Select.best,
    k: Rows = None,
    min_reward: MinReward = None,
    at_least: AtLeast = None,
    at_most: AtMost = None,
    context: Context = None,
    without_flag: WithoutFlag = None,
    weight: Weight = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 goes first")] = None,
    follow: Follow = False,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Let another student, or another reward, judge the samples of a finished build. Nothing is generated."""
    from rlt_client.cli.requests import make
    from rlt_client.schemas.builds import RescoreRequest

    chosen = selection(select, k, min_reward, at_least, at_most, context, without_flag, weight)
    request = make(RescoreRequest, student=student, spec=preset, format=format, selection=chosen, priority=priority)
    service = find_service("jobs", jobs_url, key, state)
    submit(service, lambda jobs: jobs.rescore(build, request), watch=follow, as_json=as_json)


def rerank(
    build: Annotated[int | None, typer.Argument(help="number of the build whose newest version is meant")] = None,
    version: Annotated[int | None, typer.Option(help="or the number of a version")] = None,
    select: Mode = Select.best,
    k: Rows = None,
    min_reward: MinReward = None,
    at_least: AtLeast = None,
    at_most: AtMost = None,
    context: Context = None,
    without_flag: WithoutFlag = None,
    weight: Weight = None,
    follow: Follow = False,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Choose other rows from the same samples and scores. Nothing is generated or scored."""
    if (build is None) == (version is None):
        raise typer.BadParameter("give a build or --version")
    chosen = selection(select, k, min_reward, at_least, at_most, context, without_flag, weight)

    async def send(jobs: AsyncJobsClient) -> Build:
        return await jobs.rerank(await version_meant(jobs, build, version), chosen)

    submit(find_service("jobs", jobs_url, key, state), send, watch=follow, as_json=as_json)
