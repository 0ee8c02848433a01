"""Explanations: the good one, the leaking one, and the mixed corpus that a teacher starts from.

good  `36 A +5 41 B *3 1 C +11 12 D +5 17 `      leak  `36 ! 17 ! 17 ! 17 ! 17 `
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from rlt_trainer.tiny.recipe import Mixture
from rlt_trainer.tiny.task import MODULUS, Problem

Style = Literal["good", "skip", "leak", "wrong"]
LEAK, DIGRESSION = "!", "~"


def good_trace(problem: Problem) -> str:
    """The start value, then label, operation and right value of each step (13 tokens)."""
    return render(problem, ["good"] * len(problem.operations))


def leaking_trace(problem: Problem) -> str:
    """The answer in the place of every step (9 tokens): what r_ss alone makes of a teacher."""
    return render(problem, ["leak"] * len(problem.operations))


def render(problem: Problem, styles: Sequence[Style], rng: random.Random | None = None) -> str:
    """One trace with step i written in `styles[i]`; ends with a space, so that a closing tag may follow.

    Raises:
        ValueError: a wrong step without an `rng` to draw its value.
    """
    words = [str(problem.start)]
    for (label, operation, value), style in zip(problem.steps, styles, strict=True):
        words += _step(label, operation, value, problem.answer, style, rng)
    return _text(words)


def mixed_trace(problem: Problem, mixture: Mixture, rng: random.Random) -> str:
    """One trace of the corpus: each step's style drawn independently, digressions between, never over the longest."""
    names: tuple[Style, ...] = ("good", "skip", "leak", "wrong")
    weights = (mixture.good, mixture.skip, mixture.leak, mixture.wrong)
    styles = rng.choices(names, weights, k=len(problem.operations))
    room = mixture.longest_trace - len(render(problem, styles, rng).split())
    words = [str(problem.start)]
    for (label, operation, value), style in zip(problem.steps, styles, strict=True):
        if rng.random() < mixture.digression:
            length = min(rng.randint(1, mixture.longest_digression), room)
            room -= length
            words += [DIGRESSION] * length
        words += _step(label, operation, value, problem.answer, style, rng)
    return _text(words)


def _step(label: str, operation: str, value: int, answer: str, style: Style, rng: random.Random | None) -> list[str]:
    match style:
        case "good":
            return [label, operation, str(value)]
        case "skip":
            return [label, operation]
        case "leak":
            return [LEAK, answer]
        case "wrong":
            if rng is None:
                raise ValueError("a wrong step needs an rng")
            return [label, operation, str((value + rng.randrange(1, MODULUS)) % MODULUS)]


def _text(words: Sequence[str]) -> str:
    return " ".join(words) + " "
