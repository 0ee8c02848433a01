"""What the commands of builds and data sets share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from rlt_client.cli.connection import LONG_PATIENCE, PATIENCE, Service, call
from rlt_client.cli.errors import FAILED

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rlt_client.jobs import AsyncJobsClient
    from rlt_client.schemas.builds import Build

__all__ = [
    "AsJSON",
    "BuildID",
    "Follow",
    "Yes",
    "ask",
    "confirm",
    "first",
    "follow",
    "print_json",
    "show",
    "submit",
    "version_meant",
]

T = TypeVar("T")
AsJSON = Annotated[bool, typer.Option("--json", help="print JSON; of many things one a line")]
BuildID = Annotated[int, typer.Argument(metavar="BUILD", help="number of the build")]
Follow = Annotated[bool, typer.Option("--watch", help="stay until it ends")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


def ask(service: Service, work: Callable[[AsyncJobsClient], Awaitable[T]], *, patience: float = PATIENCE) -> T:
    """What `work` makes of a client."""
    from rlt_client.jobs import AsyncJobsClient

    return call(AsyncJobsClient, service, work, patience=patience)


def show(build: Build, *, as_json: bool) -> None:
    from rlt_client.cli.builds import card
    from rlt_client.cli.output import console

    if as_json:
        print_json(build)
    else:
        console().print(card(build))


def print_json(value: BaseModel) -> None:
    """One object on several lines, for people who pipe it into `jq` and for those who do not."""
    typer.echo(value.model_dump_json(indent=2, by_alias=True))


def follow(service: Service, build: int, *, as_json: bool) -> None:
    """Show a build until it ends; exits 1 where it did not end well."""
    from rlt_client.cli.progress import follow as shown

    ended = ask(service, lambda jobs: shown(jobs, build, as_json=as_json), patience=LONG_PATIENCE)
    if not as_json:
        show(ended, as_json=False)
    if ended.state != "done":
        raise typer.Exit(FAILED)


def submit(
    service: Service, work: Callable[[AsyncJobsClient], Awaitable[Build]], *, watch: bool, as_json: bool
) -> None:
    """Show the build that `work` makes, at once or until it ends."""
    build = ask(service, work)
    if watch:
        follow(service, build.id, as_json=as_json)
    else:
        show(build, as_json=as_json)


async def first(items: AsyncIterator[T], limit: int) -> list[T]:
    """Not one more is fetched than `limit` and its page."""
    found: list[T] = []
    async for item in items:
        found.append(item)
        if len(found) == limit:
            break
    return found


async def version_meant(jobs: AsyncJobsClient, build: int | None, version: int | None) -> int:
    """One of both is given. Raises `CommandFailed` where the build has no version."""
    from rlt_client.cli.errors import CommandFailed

    if build is None:
        return version or 0
    found = await jobs.build(build)
    if found.version is None:
        raise CommandFailed(f"build {build} has no version yet: it is {found.state}")
    return found.version


def confirm(what: str, yes: bool) -> None:
    """Ask before something is removed. Where nobody can be asked, `--yes` must have been said."""
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{what}: say --yes")
    typer.confirm(f"{what}?", abort=True)
