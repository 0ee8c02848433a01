"""Explanations while they are written: panels that grow in a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from rlt_client.cli.output import console, headline, safe
from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.explain import Delta, ExplainEvent, Finished, Restarted, Scored, Started
from rlt_client.schemas.reward import Score

__all__ = ["watching"]

FRAME: Final = 2  # lines that a panel's border takes
PER_SECOND: Final = 12  # redraws; the server sends what is due every 50 ms


@contextmanager
def watching() -> Iterator[Callable[[ExplainEvent], None]]:
    """Gives what is to be told of each event. In a terminal nothing of it remains."""
    if not console().is_terminal:
        yield _Lines().show
        return
    panels = _Panels()
    with Live(panels, console=console(), refresh_per_second=PER_SECOND, transient=True):
        yield panels.show


@dataclass(slots=True)
class _Sample:
    policy: ModelRef | None = None
    text: str = ""
    tokens: int = 0
    status: str | None = None
    score: Score | None = None


@dataclass(slots=True)
class _Panels:
    """The end of every text, as many lines as there is room for."""

    samples: dict[int, _Sample] = field(default_factory=dict)

    def show(self, event: ExplainEvent) -> None:
        match event:
            case Started():
                each = event.samples // len(event.policies)
                several = len(event.policies) > 1
                for index in range(event.samples):
                    self.samples[index] = _Sample(event.policies[index // each] if several else None)
            case Delta():
                sample = self.samples[event.index]
                sample.text += event.text
                sample.tokens += event.tokens
            case Restarted():
                self.samples[event.index] = _Sample(self.samples[event.index].policy)
            case Finished():
                self.samples[event.explanation.index].status = event.explanation.gen_status
            case Scored():
                self.samples[event.index].score = event.score
            case _:
                pass

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        samples = list(self.samples.items())
        room = max(1, (options.size.height - 1) // max(1, len(samples)) - FRAME)
        shown = samples[: max(1, (options.size.height - 1) // (room + FRAME))]
        for index, sample in shown:
            yield self._panel(index, sample, console, room)

    def _panel(self, index: int, sample: _Sample, console: Console, room: int) -> Panel:
        width = console.width - 4  # borders and padding
        tail = Text(safe(sample.text[-room * width :]))
        lines = tail.wrap(console, width)[-room:]
        policy = f" of {sample.policy.name}" if sample.policy else ""
        title = f"sample {index}{policy} · {sample.tokens} tokens"
        return Panel(
            Text("\n").join(lines),
            title=f"{title} · {sample.status}" if sample.status else title,
            subtitle=headline(sample.score) if sample.score else None,
            title_align="left",
            subtitle_align="left",
            border_style="green" if sample.status == "complete" else "yellow" if sample.status else "dim",
        )


@dataclass(slots=True)
class _Lines:
    """Each line of a text as soon as it is whole, with the number of its sample before it."""

    begun: dict[int, str] = field(default_factory=dict)

    def show(self, event: ExplainEvent) -> None:
        match event:
            case Delta():
                *lines, rest = (self.begun.get(event.index, "") + event.text).split("\n")
                self.begun[event.index] = rest
                self._print(event.index, *lines)
            case Restarted():
                self.begun.pop(event.index, None)
                self._print(event.index, f"begins anew: {event.reason}")
            case Finished(explanation=explanation):
                rest = self.begun.pop(explanation.index, "")
                self._print(explanation.index, *([rest] if rest else []))
                tokens = explanation.usage.completion_tokens
                self._print(explanation.index, f"– {explanation.gen_status}, {tokens} tokens")
            case Scored():
                self._print(event.index, f"– {headline(event.score).plain}")
            case _:
                pass

    def _print(self, index: int, *lines: str) -> None:
        for line in lines:
            console().print(Text(f"{index} │ {safe(line)}"), soft_wrap=True)
