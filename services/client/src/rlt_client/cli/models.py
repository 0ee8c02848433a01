"""`rlt models …`: the students and teachers that a reward server scores with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from rlt_client.cli.choices import RoleName
from rlt_client.cli.connection import DEFAULT_STATE, Key, RewardURL, Service, StateDir, call, find_service

if TYPE_CHECKING:
    from rich.table import Table

    from rlt_client.aio import AsyncRewardClient
    from rlt_client.schemas.models import LoadedModelReply, ModelInfo, ModelList

__all__ = ["register"]

T = TypeVar("T")
LOAD_S = 3600.0  # reading tens of gigabytes from a shared disk takes minutes, more so behind other loads
AsJSON = Annotated[bool, typer.Option("--json", help="print JSON")]
RoleArg = Annotated[RoleName, typer.Argument(metavar="ROLE", help="student or teacher")]
NameArg = Annotated[str, typer.Argument(metavar="NAME", help="what requests call it")]


def register(app: typer.Typer) -> None:
    models = typer.Typer(no_args_is_help=True, help="Students and teachers of the reward server: list, load, unload.")
    app.add_typer(models, name="models")
    for name, command in (("list", list_models), ("load", load), ("unload", unload)):
        models.command(name)(command)


def list_models(
    as_json: AsJSON = False, reward_url: RewardURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """What is served now."""
    from rlt_client.cli.output import console

    async def fetch(reward: AsyncRewardClient) -> ModelList:
        return await reward.models()

    found = _call(find_service("reward", reward_url, key, state), fetch)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        console().print(_table([*found.students, *found.teachers]))


def load(
    role: RoleArg,
    name: NameArg,
    source: Annotated[str, typer.Argument(help="folder that the server may read, or a name of the hub")],
    lora: Annotated[bool, typer.Option("--lora", help="SOURCE is a LoRA adapter, on the model --base")] = False,
    base: Annotated[str | None, typer.Option(help="served model that an adapter changes")] = None,
    default: Annotated[bool, typer.Option("--default", help="make it what requests get that name none")] = False,
    expected_revision: Annotated[str | None, typer.Option(help="load it only if its content hash is this")] = None,
    as_json: AsJSON = False,
    reward_url: RewardURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Load a version of a model and switch to it; requests that began keep the version that they had."""
    from rlt_client.cli.output import console
    from rlt_client.cli.requests import make
    from rlt_client.schemas.models import LoadModel

    request = make(
        LoadModel,
        role=role,
        name=name,
        source=source,
        kind="lora" if lora else "full",
        base=base,
        default=default,
        expected_revision=expected_revision,
    )

    async def ask(reward: AsyncRewardClient) -> LoadedModelReply:
        return await reward.load_model(request, deadline=LOAD_S)

    reply = _call(find_service("reward", reward_url, key, state), ask)
    if as_json:
        typer.echo(reply.model_dump_json(indent=2))
    else:
        how = f"loaded in {reply.seconds:.1f} s" if reply.loaded else "was served already"
        console().print(f"{reply.model.name} {reply.model.revision} {how}")


def unload(
    role: RoleArg, name: NameArg, reward_url: RewardURL = None, key: Key = None, state: StateDir = DEFAULT_STATE
) -> None:
    """Serve a model no more. A default is not unloaded: make another one the default first."""
    from rlt_client.schemas.models import Role

    async def ask(reward: AsyncRewardClient) -> None:
        await reward.unload_model(Role(role), name)

    _call(find_service("reward", reward_url, key, state), ask)


def _call(service: Service, work: Callable[[AsyncRewardClient], Awaitable[T]]) -> T:
    from rlt_client.aio import AsyncRewardClient

    return call(AsyncRewardClient, service, work)


def _table(models: Iterable[ModelInfo]) -> Table:
    from rich.table import Table

    rows = Table("role", "name", "revision", "kind", "weights", "devices", "", box=None, header_style="bold")
    for model in models:
        notes = ["default"] * model.default + [f"retiring, {model.requests} requests"] * (model.state != "serving")
        rows.add_row(
            model.role,
            model.name,
            model.revision,
            f"{model.kind} on {model.base.name}" if model.base else model.kind,
            f"{model.memory_bytes / 2**20:,.1f} MiB {model.dtype}",
            ", ".join(model.devices),
            ", ".join(notes),
        )
    return rows
