"""`rlt data …`: data sets, their versions, and what was uploaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rlt_client.cli.connection import DEFAULT_STATE, JobsURL, Key, StateDir, find_service
from rlt_client.cli.jobs import AsJSON, Yes, ask, confirm, first, print_json

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["register"]

VersionID = Annotated[
    int, typer.Argument(metavar="VERSION", help="number of the version, as `rlt build show` gives it")
]
Limit = Annotated[int, typer.Option(min=1, help="at most this many")]


def register(app: typer.Typer) -> None:
    data = typer.Typer(no_args_is_help=True, help="Data sets and their versions: list, look at, delete.")
    app.add_typer(data, name="data")
    data.command("list")(list_datasets)
    for command in (versions, show, delete, uploads):
        data.command()(command)
    data.command("delete-upload")(delete_upload)


def list_datasets(
    limit: Limit = 100,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Your data sets, by name."""
    service = find_service("jobs", jobs_url, key, state)
    found = ask(service, lambda jobs: first(jobs.datasets(), limit))
    rows = [(each.name, each.builds, each.versions, each.latest_version or "") for each in found]
    _print(found, ("data set", "builds", "versions", "newest version"), rows, as_json=as_json)


def versions(
    name: Annotated[str, typer.Argument(help="name of the data set")],
    limit: Limit = 100,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Versions of a data set, newest first."""
    service = find_service("jobs", jobs_url, key, state)
    found = ask(service, lambda jobs: first(jobs.versions(name), limit))
    rows = [
        (
            each.id,
            each.number,
            each.parent or "",
            each.build or "",
            f"{each.rows:,}",
            f"{each.created_at:%Y-%m-%d %H:%M}",
        )
        for each in found
    ]
    _print(found, ("version", "number", "parent", "build", "rows", "created"), rows, as_json=as_json)


def show(
    version: VersionID,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """One version: its rows, how they were chosen, where they come from."""
    found = ask(find_service("jobs", jobs_url, key, state), lambda jobs: jobs.version(version))
    if as_json:
        print_json(found)
        return
    from rlt_client.cli.builds import version_card
    from rlt_client.cli.output import console

    console().print(version_card(found))


def delete(
    version: VersionID,
    yes: Yes = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Remove a version. It is gone at once; its files go when the service's retention is over."""
    confirm(f"delete version {version}", yes)
    ask(find_service("jobs", jobs_url, key, state), lambda jobs: jobs.delete_version(version))
    typer.echo(f"version {version} is deleted")


def uploads(
    limit: Limit = 100,
    as_json: AsJSON = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Files that were uploaded, newest first."""
    service = find_service("jobs", jobs_url, key, state)
    found = ask(service, lambda jobs: first(jobs.uploads(), limit))
    rows = [
        (each.id, each.name or "", each.format, f"{each.bytes:,}", f"{each.created_at:%Y-%m-%d %H:%M}")
        for each in found
    ]
    _print(found, ("upload", "name", "format", "bytes", "created"), rows, as_json=as_json)


def delete_upload(
    upload: Annotated[str, typer.Argument(metavar="UPLOAD", help="id, as `rlt data uploads` gives it")],
    yes: Yes = False,
    jobs_url: JobsURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Remove an uploaded file. Builds that were made of it keep their problems."""
    from uuid import UUID

    try:
        number = UUID(upload)
    except ValueError:
        raise typer.BadParameter(f"{upload} is no id of an upload") from None
    confirm(f"delete upload {upload}", yes)
    ask(find_service("jobs", jobs_url, key, state), lambda jobs: jobs.delete_upload(number))
    typer.echo(f"upload {upload} is deleted")


def _print(
    found: Sequence[BaseModel], headings: tuple[str, ...], rows: Sequence[tuple[object, ...]], *, as_json: bool
) -> None:
    if as_json:
        for each in found:
            typer.echo(each.model_dump_json(by_alias=True))
        return
    from rich.table import Table

    from rlt_client.cli.output import console

    table = Table(*headings, box=None, header_style="bold")
    for row in rows:
        table.add_row(*map(str, row))
    console().print(table if rows else "none yet")
