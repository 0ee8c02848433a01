"""Explanations as people read them: a panel each, best first, and what several policies were worth."""

from __future__ import annotations

from collections.abc import Iterator

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlt_client.cli.output import console, headline, nats, safe
from rlt_client.schemas.explain import Dropped, ExplainResponse, Explanation, PolicySummary

__all__ = ["show"]


def show(response: ExplainResponse) -> None:
    """Each explanation in the order of the reply, the comparison of policies, then what it cost."""
    compared = response.comparison is not None
    for place, each in enumerate(response.explanations, start=1):
        console().print(_panel(place, each, best=each.index == response.best, compared=compared))
    if response.comparison is not None:
        console().print(_comparison(response.comparison))
    console().print(_footer(response), style="dim")


def _panel(place: int, each: Explanation, *, best: bool, compared: bool) -> Panel:
    policy = f" of {each.policy.name}" if compared and each.policy else ""
    ending = "" if each.gen_status == "complete" else f" · {each.gen_status}"
    flags = f" · {', '.join(each.flags)}" if each.flags else ""
    title = Text.assemble(
        (f"{place}. ", "bold"), ("best " if best else "", "bold green"), f"sample {each.index}{policy}", ending
    )
    title.append(flags, style="yellow")
    return Panel(_body(each), title=title, subtitle=headline(each.score), title_align="left", subtitle_align="left")


def _body(each: Explanation) -> Text:
    """The explanation with the places that refer to the given solution; else what there is instead."""
    if each.text is not None:
        body = Text(safe(each.text))
        for leak in each.leaks:
            body.stylize("yellow underline", leak.start, leak.end)
        return _stripped(body)
    if each.completion is not None:
        return _stripped(Text(safe(each.completion), style="dim"))
    return Text(each.error.detail or each.error.title if each.error else "nothing was generated", style="red")


def _stripped(body: Text) -> Text:
    """Without the line breaks around it."""
    inside = body.plain.strip("\n")
    start = body.plain.find(inside)
    return body[start : start + len(inside)] if inside else Text("")


def _comparison(policies: list[PolicySummary]) -> Table:
    table = Table(title="policies", title_style="bold", title_justify="left")
    table.add_column("policy")
    table.add_column("revision")
    for name in ("complete", "scored", "leaking", "mean reward", "best reward", "best sample", "wins"):
        table.add_column(name, justify="right")
    for each in policies:
        table.add_row(*_row(each))
    return table


def _row(each: PolicySummary) -> tuple[str, ...]:
    return (
        each.policy.name,
        _short(each.policy.revision),
        f"{each.complete}/{each.samples}",
        str(each.scored),
        str(each.leaking),
        _figure(each.mean_reward),
        _figure(each.best_reward),
        "–" if each.best is None else str(each.best),
        str(each.wins),
    )


def _short(revision: str) -> str:
    """An adapter's own hash, without its base's."""
    return revision.rpartition("+")[2][:19]


def _figure(reward: float | None) -> str:
    return "–" if reward is None else nats(reward)


def _footer(response: ExplainResponse) -> str:
    usage, timing = response.usage, response.timing
    seconds = (timing.queue_ms + timing.engine_ms + timing.overhead_ms) / 1000
    policy = f"policy {response.policy.name} ({_short(response.policy.revision)})"
    parts = [
        *(_left_out(response.dropped)),
        policy if response.comparison is None else "",
        f"format {response.format.name}",
        "" if response.seed is None else f"seed {response.seed}",
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens",
        f"{seconds:.2f} s",
    ]
    return " · ".join(filter(None, parts))


def _left_out(dropped: Dropped) -> Iterator[str]:
    reasons = {
        "incomplete": dropped.incomplete,
        "with leaks": dropped.leaks,
        "below the reward asked for": dropped.min_reward,
        "not the best": dropped.not_best,
    }
    named = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    if named:
        yield f"left out: {named}"
