"""`rlt explain`: question and answer in, ranked explanations out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from rlt_client.cli.choices import IncompleteName, KeepName, PresetName
from rlt_client.cli.connection import DEFAULT_STATE, PATIENCE, Key, Service, StateDir, TeacherURL, find_service, reach
from rlt_client.cli.errors import FAILED

if TYPE_CHECKING:
    from rlt_client.schemas.explain import ExplainEvent, ExplainRequest, ExplainResponse

    Watcher = AbstractContextManager[Callable[[ExplainEvent], None]]

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    question: str,
    answer: Annotated[str, typer.Argument(help="the ground-truth solution, without tags")],
    n: Annotated[int, typer.Option("-n", min=1, help="explanations to sample, of each policy")] = 4,
    stream: Annotated[bool, typer.Option("--stream", help="show the explanations while they are written")] = False,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="policy, or revision of one; given again, policies are compared; the active one if left out"),
    ] = None,
    score: Annotated[bool, typer.Option("--score/--no-score", help="score each and rank by reward")] = True,
    preset: Annotated[PresetName | None, typer.Option(help="reward to rank by; rlt if left out")] = None,
    keep: Annotated[KeepName | None, typer.Option(help="all, or the best alone")] = None,
    min_reward: Annotated[float | None, typer.Option(help="leave out what has a lower reward, or none")] = None,
    incomplete: Annotated[
        IncompleteName | None, typer.Option(help="keep, drop, or retry (with a larger budget) what is cut off")
    ] = None,
    retry_max_tokens: Annotated[
        int | None, typer.Option(min=1, help="that budget; twice the first if left out")
    ] = None,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="leave out what refers to having been given the solution")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of one explanation at most")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    seed: Annotated[int | None, typer.Option(min=0, help="same seed, same explanations")] = None,
    format: Annotated[str | None, typer.Option(help="prompt format; the server's default if left out")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the reply as JSON; with --stream, a line an event")] = (
        False
    ),
    teacher_url: TeacherURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Explain how ANSWER follows from QUESTION, n times, best first. Exits 1 if there is no complete explanation."""
    from rlt_client.cli.requests import make
    from rlt_client.schemas.explain import ExplainRequest

    request = make(
        ExplainRequest,
        question=question,
        answer=answer,
        n=n,
        stream=stream,
        **_policies(policy or []),
        score=score,
        spec=preset,
        keep=keep,
        min_reward=min_reward,
        incomplete=incomplete,
        retry_max_tokens=retry_max_tokens,
        drop_leaks=drop_leaks,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        format=format,
    )
    response = asyncio.run(_explain(find_service("teacher", teacher_url, key, state), request, as_json=as_json))
    _tell(response, as_json=as_json, told=stream)
    if not any(each.gen_status == "complete" for each in response.explanations):
        raise typer.Exit(FAILED)


def _policies(names: Sequence[str]) -> dict[str, str | list[str] | None]:
    return {"policies": list(names)} if len(names) > 1 else {"policy": next(iter(names), None)}


async def _explain(service: Service, request: ExplainRequest, *, as_json: bool) -> ExplainResponse:
    from rlt_client.aio import AsyncTeacherClient

    await reach(service)
    async with AsyncTeacherClient(service.url, key=service.key, patience=PATIENCE) as teacher:
        if not request.stream:
            return await teacher.explain(request)
        async with aclosing(teacher.explain_stream(request)) as events:
            with _watcher(as_json) as show:
                async for event in events:
                    show(event)
                    if event.event == "done":
                        response = event.response
    return response  # a stream that has no `done` raises


def _watcher(as_json: bool) -> Watcher:
    from rlt_client.cli.live import watching

    return nullcontext(_print_event) if as_json else watching()


def _print_event(event: ExplainEvent) -> None:
    typer.echo(event.model_dump_json(by_alias=True, exclude_none=True))


def _tell(response: ExplainResponse, *, as_json: bool, told: bool) -> None:
    """`told`: the last event of a stream has the reply already."""
    from rlt_client.cli.explained import show

    if not as_json:
        show(response)
    elif not told:
        typer.echo(response.model_dump_json(indent=2, by_alias=True, exclude_none=True))
