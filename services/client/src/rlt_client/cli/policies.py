"""`rlt policies …`: versions of the teacher, published, compared and taken back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from rlt_client.cli.connection import DEFAULT_STATE, Key, Service, StateDir, TeacherURL, call, find_service

if TYPE_CHECKING:
    from rich.table import Table

    from rlt_client.aio import AsyncTeacherClient
    from rlt_client.schemas.common import ModelRef
    from rlt_client.schemas.policies import EngineInfo, LoadedPolicy, PolicyInfo, PolicyList

__all__ = ["register"]

T = TypeVar("T")
LOAD_S = 3600.0  # reading tens of gigabytes from a shared disk takes minutes, more so behind other loads
AsJSON = Annotated[bool, typer.Option("--json", help="print JSON")]
NameArg = Annotated[str, typer.Argument(metavar="NAME", help="what requests call it")]
Revision = Annotated[str | None, typer.Option(help="of several versions of the name; the newest if left out")]


def register(app: typer.Typer) -> None:
    policies = typer.Typer(no_args_is_help=True, help="Versions of the teacher: publish, activate, roll back.")
    app.add_typer(policies, name="policies")
    policies.command("list")(list_policies)
    for command in (load, activate, rollback, unload, delete):
        policies.command()(command)


def list_policies(
    as_json: AsJSON = False, teacher_url: TeacherURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """Every version that is known, the newest first, and the engines."""
    from rlt_client.cli.output import console

    async def fetch(teacher: AsyncTeacherClient) -> PolicyList:
        return await teacher.policies()

    found = _call(find_service("teacher", teacher_url, key, state), fetch)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console().print(_table(found))
    console().print()
    console().print(_engines(found.engines))


def load(
    name: NameArg,
    source: Annotated[str, typer.Argument(help="folder that the teacher and its engines may read")],
    full: Annotated[bool, typer.Option("--full", help="SOURCE is a whole model, not a LoRA adapter")] = False,
    activate: Annotated[bool, typer.Option("--activate", help="make it what requests get that name none")] = False,
    expected_revision: Annotated[str | None, typer.Option(help="load it only if its content hash is this")] = None,
    as_json: AsJSON = False,
    teacher_url: TeacherURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Publish a version; requests that began keep the version that they had."""
    from rlt_client.cli.output import console
    from rlt_client.cli.requests import make
    from rlt_client.schemas.policies import LoadPolicy

    request = make(
        LoadPolicy,
        name=name,
        source=source,
        kind="full" if full else "lora",
        activate=activate,
        expected_revision=expected_revision,
    )

    async def ask(teacher: AsyncTeacherClient) -> LoadedPolicy:
        return await teacher.load_policy(request, deadline=LOAD_S)

    reply = _call(find_service("teacher", teacher_url, key, state), ask)
    if as_json:
        typer.echo(reply.model_dump_json(indent=2))
    else:
        how = f"loaded in {reply.seconds:.1f} s" if reply.loaded else "was there already"
        console().print(f"{reply.policy.name} {reply.policy.revision} {how}: {_notes(reply.policy)}")


def activate(
    name: NameArg,
    revision: Revision = None,
    teacher_url: TeacherURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Make a known version what requests get that name none."""

    async def ask(teacher: AsyncTeacherClient) -> PolicyInfo:
        return await teacher.activate_policy(name, revision, deadline=LOAD_S)

    _tell(_call(find_service("teacher", teacher_url, key, state), ask))


def rollback(
    expected_revision: Annotated[str | None, typer.Option(help="go back only if this is active")] = None,
    teacher_url: TeacherURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Make active what was active before; again and again goes further back."""

    async def ask(teacher: AsyncTeacherClient) -> PolicyInfo:
        return await teacher.rollback_policy(expected_revision=expected_revision, deadline=LOAD_S)

    _tell(_call(find_service("teacher", teacher_url, key, state), ask))


def unload(
    name: NameArg,
    revision: Revision = None,
    teacher_url: TeacherURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Take an adapter out of the engines; it stays known."""

    async def ask(teacher: AsyncTeacherClient) -> PolicyInfo:
        return await teacher.unload_policy(name, revision)

    _tell(_call(find_service("teacher", teacher_url, key, state), ask))


def delete(
    name: NameArg,
    revision: Annotated[str | None, typer.Option(help="this version alone; all of the name if left out")] = None,
    teacher_url: TeacherURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Forget a policy. Its files stay."""

    async def ask(teacher: AsyncTeacherClient) -> None:
        await teacher.delete_policy(name, revision)

    _call(find_service("teacher", teacher_url, key, state), ask)


def _call(service: Service, work: Callable[[AsyncTeacherClient], Awaitable[T]]) -> T:
    from rlt_client.aio import AsyncTeacherClient

    return call(AsyncTeacherClient, service, work)


def _tell(policy: PolicyInfo) -> None:
    from rlt_client.cli.output import console

    console().print(f"{policy.name} {policy.revision}: {_notes(policy)}")


def _notes(policy: PolicyInfo) -> str:
    requests = f"{policy.requests} requests" if policy.requests else ""
    return ", ".join(filter(None, ("active" * policy.active, policy.state, requests, policy.detail)))


def _table(found: PolicyList) -> Table:
    from rich.table import Table

    rows = Table("name", "revision", "kind", "", "before", box=None, header_style="bold")
    for policy in found.policies:
        places = [i for i, ref in enumerate(found.history, 1) if _same(ref, policy)]
        kind = f"{policy.kind} on {policy.base.name}" if policy.base else policy.kind
        rows.add_row(policy.name, policy.revision, kind, _notes(policy), ", ".join(f"−{place}" for place in places))
    return rows


def _same(left: ModelRef, right: ModelRef) -> bool:
    return (left.name, left.revision) == (right.name, right.revision)


def _engines(engines: list[EngineInfo]) -> Table:
    from rich.table import Table

    rows = Table("engine", "", "version", "weights", "running", "waiting", box=None, header_style="bold")
    for engine in engines:
        state = "up" if engine.up else "down"
        figures = ("" if figure is None else str(figure) for figure in (engine.running, engine.waiting))
        note = ", ".join(filter(None, (state, engine.detail)))
        rows.add_row(engine.name, note, engine.version or "", engine.weights or "", *figures)
    return rows
