"""`rlt up`, `status`, `logs`, `down`, `demo`, `store`: added to `rlt` by the entry point. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlt_client.cli.errors import FAILED, CommandFailed
from rlt_local.store import app as store

__all__ = ["register"]

NOT_RUNNING = 3  # as init scripts do


State = Annotated[Path, typer.Option("--state", envvar="RLT_STATE", help="folder of the stack")]
DEFAULT = Path(".rlt")
EngineEnv = Annotated[Path, typer.Option(envvar="RLT_ENGINE_ENV", help="vLLM's environment")]
DEFAULT_ENGINE_ENV = Path(".engine")


def register(app: typer.Typer) -> None:
    for command in (up, status, logs, down, demo):
        app.command(rich_help_panel="Local stack")(command)
    app.add_typer(store, name="store", rich_help_panel="Local stack")


def up(
    teacher: Annotated[str | None, typer.Option(help="name or folder of the model; a tiny one if left out")] = None,
    student: Annotated[str | None, typer.Option(help="the teacher's model if left out")] = None,
    format: Annotated[str | None, typer.Option(help="prompt format; stratos, or mini for the tiny models")] = None,
    formats: Annotated[Path | None, typer.Option(help="folder of your own prompt formats")] = None,
    engine: Annotated[
        str, typer.Option(help="transformers (in the teacher server), vllm (see `make engine`), or a vLLM server's URL")
    ] = "transformers",
    engine_env: EngineEnv = DEFAULT_ENGINE_ENV,
    engine_memory: Annotated[
        int | None, typer.Option(min=64, help="MiB that vLLM keeps for keys and values; 4096, or 256 for tiny models")
    ] = None,
    hosted_teacher: Annotated[
        bool, typer.Option(help="the reward server holds the teacher too, for texts without log-probs")
    ] = True,
    workers: Annotated[int, typer.Option(min=1, help="worker processes of the jobs service")] = 2,
    ports: Annotated[str, typer.Option(help="first of three ports (teacher, reward, jobs), or: free")] = "8001",
    timeout: Annotated[float, typer.Option(min=1, help="seconds until everything must be ready")] = 900.0,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="return once it is ready; `rlt down` stops it")
    ] = False,
    state: State = DEFAULT,
) -> None:
    """Start everything on this machine, and wait until it is ready."""
    from rlt_client.cli.output import console
    from rlt_client.cli.requests import make
    from rlt_local.display import summary
    from rlt_local.options import StackOptions
    from rlt_local.state import StateFolder
    from rlt_local.up import attached, detached

    if ports != "free" and not ports.isdigit():
        raise typer.BadParameter(f"--ports takes a number or `free`, not {ports!r}")
    options = make(
        StackOptions,
        teacher=teacher,
        student=student,
        format=format,
        formats=formats,
        engine=engine,
        engine_env=engine_env,
        engine_memory_mib=engine_memory,
        hosted_teacher=hosted_teacher,
        workers=workers,
        start_timeout=timeout,
    ).model_copy(update={"first_port": None if ports == "free" else int(ports)})
    if not detach:
        attached(options, StateFolder(state), console())
        return
    console().print(summary(detached(options, StateFolder(state), console())))
    console().print("rlt status, rlt logs and rlt down see to it.", style="dim")


def status(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False, state: State = DEFAULT) -> None:
    """What runs, and whether it is ready now. Exits 1 if something is not, 3 if nothing runs."""
    from rlt_client.cli.output import console
    from rlt_local.display import table
    from rlt_local.state import StateFolder
    from rlt_local.status import current

    record, healthy = current(StateFolder(state))
    if record is None:
        typer.echo(f"no stack runs in {state}", err=True)
        raise typer.Exit(NOT_RUNNING)
    if as_json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        console().print(f"{record.state} in {state} (supervisor {record.pid})", style="bold")
        console().print(table(record))
    raise typer.Exit(0 if healthy else FAILED)


def logs(
    name: Annotated[str | None, typer.Argument(help="one program; all of them if left out")] = None,
    lines: Annotated[int, typer.Option("-n", min=0, help="last lines of each")] = 20,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on with what is written from now on")] = False,
    state: State = DEFAULT,
) -> None:
    """What the programs have written."""
    from rlt_local.logs import followed, last_lines, log_files
    from rlt_local.state import StateFolder

    files = log_files(StateFolder(state), name)
    if not files:
        raise CommandFailed(f"no logs in {state}" if name is None else f"no log of {name!r} in {state}")
    prefixed = len(files) > 1
    for path, line in last_lines(files, lines):
        typer.echo(f"{path.stem:9} {line}" if prefixed else line)
    if follow:
        for path, line in followed(files):
            typer.echo(f"{path.stem:9} {line}" if prefixed else line)


def demo(
    engine: Annotated[str, typer.Option(help="transformers, vllm (see `make engine`), or a URL")] = "transformers",
    engine_env: EngineEnv = DEFAULT_ENGINE_ENV,
    keep: Annotated[bool, typer.Option("--keep", help="leave the stack running")] = False,
    state: Annotated[Path, typer.Option("--state", help="folder of the demo's own stack")] = Path(".rlt-demo"),
) -> None:
    """The main job on tiny models made here: explain, reward, build a data set. Exits 1 if a promise is not kept."""
    from rlt_client.cli.output import console
    from rlt_client.cli.requests import make
    from rlt_local.demo.run import demo
    from rlt_local.options import StackOptions

    options = make(StackOptions, engine=engine, engine_env=engine_env).model_copy(update={"first_port": None})
    if not demo(state, options, console(), keep=keep):
        raise typer.Exit(FAILED)


def down(state: State = DEFAULT) -> None:
    """Stop everything. Says so, and succeeds, where nothing runs."""
    from rlt_local.state import StateFolder
    from rlt_local.stop import stop

    typer.echo(f"stopped the stack in {state}" if stop(StateFolder(state)) else f"no stack runs in {state}")
