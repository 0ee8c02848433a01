"""`rlt explain`: question and answer in, ranked explanations out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from rlt_client.cli.choices import PresetName
from rlt_client.cli.connection import DEFAULT_STATE, PATIENCE, Key, Service, StateDir, TeacherURL, find_service, reach

if TYPE_CHECKING:
    from rlt_client.schemas.explain import ExplainRequest, ExplainResponse, Explanation

__all__ = ["register", "show"]


def register(app: typer.Typer) -> None:
    app.command()(explain)


def explain(
    question: str,
    answer: Annotated[str, typer.Argument(help="the ground-truth solution, without tags")],
    n: Annotated[int, typer.Option("-n", min=1, help="explanations to sample")] = 4,
    score: Annotated[bool, typer.Option("--score/--no-score", help="score each and rank by reward")] = True,
    preset: Annotated[PresetName | None, typer.Option(help="reward to rank by; rlt if left out")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of one explanation at most")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    seed: Annotated[int | None, typer.Option(min=0, help="same seed, same explanations")] = None,
    format: Annotated[str | None, typer.Option(help="prompt format; the server's default if left out")] = None,
    policy: Annotated[str | None, typer.Option(help="served policy; the active one if left out")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the reply as JSON")] = False,
    teacher_url: TeacherURL = None,
    key: Key = None,
    state: StateDir = DEFAULT_STATE,
) -> None:
    """Explain how ANSWER follows from QUESTION, n times, best first."""
    from rlt_client.cli.requests import make
    from rlt_client.schemas.explain import ExplainRequest

    request = make(
        ExplainRequest,
        question=question,
        answer=answer,
        n=n,
        score=score,
        spec=preset,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        format=format,
        policy=policy,
    )
    response = asyncio.run(_explain(find_service("teacher", teacher_url, key, state), request))
    if as_json:
        typer.echo(response.model_dump_json(indent=2, by_alias=True, exclude_none=True))
    else:
        show(response)


async def _explain(service: Service, request: ExplainRequest) -> ExplainResponse:
    from rlt_client.aio import AsyncTeacherClient

    await reach(service)
    async with AsyncTeacherClient(service.url, key=service.key, patience=PATIENCE) as teacher:
        return await teacher.explain(request)


def show(response: ExplainResponse) -> None:
    """Each explanation in a panel, in the order of the reply, then what it cost."""
    from rlt_client.cli.output import console

    for place, each in enumerate(response.explanations, start=1):
        console().print(_panel(place, each, best=each.index == response.best))
    usage, timing = response.usage, response.timing
    seconds = (timing.queue_ms + timing.engine_ms + timing.overhead_ms) / 1000
    console().print(
        f"policy {response.policy.name} ({response.policy.revision[:12]}) · format {response.format.name} · "
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens · {seconds:.2f} s",
        style="dim",
    )


def _panel(place: int, each: Explanation, *, best: bool) -> object:
    from rich.panel import Panel
    from rich.text import Text

    from rlt_client.cli.output import headline

    if each.text is None:
        body = Text(each.error.detail or each.error.title if each.error else "nothing was generated", style="red")
    else:
        body = Text(each.text.strip("\n"))
    ending = "" if each.gen_status == "complete" else f" · {each.gen_status}"
    title = Text.assemble(
        (f"{place}. ", "bold"), ("best " if best else "", "bold green"), f"sample {each.index}", ending
    )
    return Panel(body, title=title, subtitle=headline(each.score), title_align="left", subtitle_align="left")
