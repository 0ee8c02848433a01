"""`rlt store check` and `sweep`: the jobs service's own commands, told where the local stack keeps its things."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlt_client.cli.errors import CommandFailed

__all__ = ["app"]

app = typer.Typer(help="Prove that stored files are whole; remove those that nobody reads.", no_args_is_help=True)

State = Annotated[Path, typer.Option("--state", envvar="RLT_STATE", help="folder of a local stack that runs")]
DatabaseUrl = Annotated[str | None, typer.Option(help="of another stack: postgresql+psycopg://…; with --store")]
Store = Annotated[str | None, typer.Option(help="of another stack: a folder or s3://bucket/prefix")]
DEFAULT = Path(".rlt")


@app.command()
def check(state: State = DEFAULT, database_url: DatabaseUrl = None, store: Store = None) -> None:
    """Every checksum, every index row, every count. Prints one line a finding; exits 1 if there is one."""
    raise typer.Exit(_run(["check"], state, database_url, store))


@app.command()
def sweep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
    state: State = DEFAULT,
    database_url: DatabaseUrl = None,
    store: Store = None,
) -> None:
    """Remove what was deleted long enough ago, and files that nobody reads. The relay does it by itself, too."""
    raise typer.Exit(_run(["sweep", *(["--dry-run"] if dry_run else [])], state, database_url, store))


def _run(command: list[str], state: Path, database_url: str | None, store: str | None) -> int:
    if (database_url is None) != (store is None):
        raise typer.BadParameter("--database-url and --store go together: a store is judged by its own database")
    url, place = (database_url, store) if database_url and store else _local(state)
    env = os.environ | {"RLT_JOBS_DATABASE_URL": url, "RLT_JOBS_STORE": place}
    argv = [sys.executable, "-m", "rlt_jobs", *command]
    return subprocess.run(argv, env=env, check=False).returncode


def _local(state: Path) -> tuple[str, str]:
    from rlt_local.databases import prepare_postgres
    from rlt_local.state import StateFolder
    from rlt_local.stop import is_alive

    folder = StateFolder(state)
    record = folder.read()
    if record is None or not is_alive(record):
        raise CommandFailed(f"no stack runs in {state}: start it with `rlt up`, or give --database-url and --store")
    return prepare_postgres(folder.root / "postgres").url, str(folder.root / "store")
