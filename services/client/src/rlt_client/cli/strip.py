"""Token scores as a coloured strip: think tokens by their KL, answer tokens by their log-prob.

Each token stands over its number, so that the strip reads without colours too. All values are nats.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from rlt_client.cli.output import nats
from rlt_client.schemas.reward import TokenScores

__all__ = ["ANSWER", "KL", "Scale", "Strip", "TokenStrips", "legend"]

INK: Final = "#101010"
MANY: Final = 120  # more tokens than this are shown without their numbers


@dataclass(frozen=True, slots=True)
class Scale:
    """Colours for the values below, between and above `bounds` (ascending; one colour more than bounds)."""

    name: str
    bounds: tuple[float, ...]
    colours: tuple[str, ...]
    labels: tuple[str, ...]

    def style(self, value: float) -> str:
        return f"{INK} on {self.colours[bisect_right(self.bounds, value)]}"


KL = Scale(
    "KL, nats",
    (-0.1, 0.1, 0.5, 1.0, 2.0),
    ("#9ecae1", "#c7e9c0", "#fff7bc", "#fee391", "#fe9929", "#e2562f"),
    ("< −0.1", "about 0", "< 0.5", "< 1", "< 2", "more"),
)
ANSWER = Scale(
    "log-prob under the student",
    (-4.605, -2.303, -0.693, -0.105),  # probabilities of 1, 10, 50 and 90 %
    ("#e2562f", "#fe9929", "#fee391", "#d9f0a3", "#a1d99b"),
    ("p < 1 %", "< 10 %", "< 50 %", "< 90 %", "more"),
)


@dataclass(frozen=True, slots=True)
class Strip:
    """Tokens over their values, wrapped to the width that there is."""

    texts: Sequence[str]
    values: Sequence[float]
    scale: Scale

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [_visible(text) for text in self.texts]
        numbers = [nats(value, 2).rjust(5) for value in self.values] if len(cells) <= MANY else [""] * len(cells)
        for row in _rows([max(cell_len(a), len(b)) for a, b in zip(cells, numbers, strict=True)], options.max_width):
            yield Text(" ").join(self._cell(cells[i], numbers[i], self.values[i]) for i in row)
            if any(numbers):
                yield Text(" ").join(Text(_centred(numbers[i], cells[i]), style="dim") for i in row)

    def _cell(self, text: str, number: str, value: float) -> Text:
        return Text(_centred(text, number), style=self.scale.style(value))


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") if not text.strip() else text.strip()


def _centred(text: str, other: str) -> str:
    space = max(cell_len(other) - cell_len(text), 0)
    return " " * (space // 2) + text + " " * (space - space // 2)


def _rows(widths: Sequence[int], limit: int) -> Iterator[range]:
    """Index ranges of cells that fit side by side, a column of space between two."""
    first, used = 0, 0
    for i, width in enumerate(widths):
        if i > first and used + width > limit:
            yield range(first, i)
            first, used = i, 0
        used += width + 1
    if first < len(widths):
        yield range(first, len(widths))


@dataclass(frozen=True, slots=True)
class TokenStrips:
    """Both strips of one score."""

    scores: TokenScores

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        think, answer = self.scores.think, self.scores.answer
        values, scale = (think.kl, KL) if think.kl is not None else (think.student_logprobs, ANSWER)
        yield _caption("think", len(think.texts), scale)
        yield Strip(think.texts, values, scale)
        yield _caption("answer", len(answer.texts), ANSWER)
        yield Strip(answer.texts, answer.logprobs, ANSWER)


def _caption(name: str, tokens: int, scale: Scale) -> Text:
    return Text.assemble((name, "bold"), (f"  {tokens} token{'s' * (tokens != 1)}, {scale.name}", "dim"))


def legend() -> Text:
    """What the colours mean, a line a scale."""
    think = Text.assemble(("think   ", "bold"), ("KL in nats:          ", "dim"), *_swatches(KL))
    answer = Text.assemble(("answer  ", "bold"), ("under the student:   ", "dim"), *_swatches(ANSWER))
    return Text("\n").join([think, answer])


def _swatches(scale: Scale) -> Iterator[tuple[str, str]]:
    for colour, label in zip(scale.colours, scale.labels, strict=True):
        yield f" {label} ", f"{INK} on {colour}"
        yield " ", ""
