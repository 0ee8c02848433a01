"""Explanations of the parts task: written in four styles, and read back from what a teacher wrote.

A part is `A 36 +5 41 B *3 1` (good), `A 36 +5 B *3` (skip), `A 36 +5 B ! 1` (leak), or good in form with a wrong first
value and the second value that follows from it (wrong).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlt_trainer.tiny.parts.recipe import PartsMixture
from rlt_trainer.tiny.parts.task import Part, PartsProblem
from rlt_trainer.tiny.task import LABELS, MODULUS, apply
from rlt_trainer.tiny.traces import DIGRESSION, LEAK, Style

_STYLES: tuple[Style, ...] = ("good", "skip", "leak", "wrong")
_OPENING = frozenset(LABELS[::2])


@dataclass(frozen=True, slots=True)
class TraceStyle:
    """What a trace is like: parts that are good and parts that leak, of all four; whether it digresses; its words."""

    good_parts: int
    leaked_parts: int
    digresses: bool
    words: int


def good_parts_trace(problem: PartsProblem) -> str:
    """Every value shown (28 words)."""
    return render_parts(problem, ["good"] * len(problem.parts))


def leaking_parts_trace(problem: PartsProblem) -> str:
    """Every result told, none derived (24 words): what r_ss alone makes of a teacher."""
    return render_parts(problem, ["leak"] * len(problem.parts))


def render_parts(problem: PartsProblem, styles: Sequence[Style], rng: random.Random | None = None) -> str:
    """One trace with part i written in `styles[i]`; ends with a space, so that a closing tag may follow.

    Raises:
        ValueError: a wrong part without an `rng` to draw its value.
    """
    return _text(word for part, style in zip(problem.parts, styles, strict=True) for word in _part(part, style, rng))


def mixed_parts_trace(problem: PartsProblem, mixture: PartsMixture, rng: random.Random) -> str:
    """One trace of a corpus: each part's style drawn independently, digressions between, never over the longest."""
    shares = (mixture.good, mixture.skip, mixture.leak, mixture.wrong)
    written = [_part(part, style, rng) for part, style in zip(problem.parts, _drawn(rng, shares, problem), strict=True)]
    room = mixture.longest_trace - sum(map(len, written))
    words: list[str] = []
    for part in written:
        if rng.random() < mixture.digression:
            length = min(rng.randint(1, mixture.longest_digression), room)
            room -= length
            words += [DIGRESSION] * length
        words += part
    return _text(words)


def style_of(problem: PartsProblem, trace: str) -> TraceStyle:
    """Read a trace, whoever wrote it: a part is good only word by word, and leaks wherever it has a `!`."""
    words = trace.split()
    segments = _segments([word for word in words if word != DIGRESSION])
    good = sum(_part(part, "good", None) in segments for part in problem.parts)
    leaked = sum(LEAK in segment for segment in segments)
    return TraceStyle(good, min(leaked, len(problem.parts)), DIGRESSION in words, len(words))


def _segments(words: Sequence[str]) -> list[list[str]]:
    """The words, cut before each label that opens a part."""
    found: list[list[str]] = [[]]
    for word in words:
        if word in _OPENING:
            found.append([])
        found[-1].append(word)
    return [segment for segment in found if segment]


def _drawn(rng: random.Random, shares: Sequence[float], problem: PartsProblem) -> list[Style]:
    return rng.choices(_STYLES, shares, k=len(problem.parts))


def _part(part: Part, style: Style, rng: random.Random | None) -> list[str]:
    (first, second), (one, other), (middle, last) = part.labels, part.operations, part.values
    begun = [first, str(part.start), one]
    match style:
        case "good":
            return [*begun, str(middle), second, other, str(last)]
        case "skip":
            return [*begun, second, other]
        case "leak":
            return [*begun, second, LEAK, str(last)]
        case "wrong":
            if rng is None:
                raise ValueError("a wrong part needs an rng")
            wrong = (middle + rng.randrange(1, MODULUS)) % MODULUS
            return [*begun, str(wrong), second, other, str(apply(wrong, other))]


def _text(words: Iterable[str]) -> str:
    return " ".join(words) + " "
