"""The second task: four independent parts, each a start value in Z_61 and two labelled operations.

    question  `Q A 36 +5 B *3 C 12 +1 D *2 E 7 +5 F *3 G 19 +1 H *2`      answer  `B 1 D 26 F 36 H 40`

The answer has eight tokens, and each part of it rests on a part of the explanation of its own. Which of the three uses
a question may be drawn for follows from a hash of its text, so that no two of them share any, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from enum import Enum
from typing import Final

from rlt_trainer.tiny.task import LABELS, MODULUS, OPERATIONS, apply

PARTS: Final = 4
ANSWER_LABELS: Final = LABELS[1 : 2 * PARTS : 2]
_EIGHTHS: Final = 8


class Use(Enum):
    """What a question is for; the value: the eighths of all questions, by hash."""

    test = frozenset({0})
    training = frozenset({1, 2})  # RL and distillation: as in the paper, the same questions
    corpus = frozenset({3, 4, 5, 6, 7})  # the warm-up's


@dataclass(frozen=True, slots=True)
class Part:
    """`label start first, then label second`: two operations on a start value."""

    labels: tuple[str, str]
    start: int
    operations: tuple[str, str]

    @property
    def values(self) -> tuple[int, int]:
        """After the first operation, and after both."""
        middle = apply(self.start, self.operations[0])
        return middle, apply(middle, self.operations[1])

    @property
    def question(self) -> str:
        (first, second), (one, other) = self.labels, self.operations
        return f"{first} {self.start} {one} {second} {other}"


@dataclass(frozen=True, slots=True)
class PartsProblem:
    """Four start values with two operations each."""

    starts: tuple[int, ...]
    operations: tuple[tuple[str, str], ...]

    @property
    def parts(self) -> list[Part]:
        labels = zip(LABELS[::2], LABELS[1::2], strict=True)
        return [Part(*each) for each in zip(labels, self.starts, self.operations, strict=False)]

    @property
    def question(self) -> str:
        return f"Q {' '.join(part.question for part in self.parts)}"

    @property
    def answer(self) -> str:
        return " ".join(f"{part.labels[1]} {part.values[1]}" for part in self.parts)

    @property
    def use(self) -> Use:
        """What the question may be drawn for."""
        eighth = hashlib.sha256(self.question.encode()).digest()[0] % _EIGHTHS
        return next(use for use in Use if eighth in use.value)


def parts_problems(count: int, use: Use, seed: int = 0) -> list[PartsProblem]:
    """Different problems of one use, drawn at random; there are some 10^14."""
    rng = random.Random(f"parts {seed} {use.name}")  # noqa: S311 - reproducible data, nothing secret
    drawn: dict[PartsProblem, None] = {}
    while len(drawn) < count:
        problem = _drawn(rng)
        if problem.use is use:
            drawn[problem] = None
    return list(drawn)


def _drawn(rng: random.Random) -> PartsProblem:
    starts = tuple(rng.randrange(MODULUS) for _ in range(PARTS))
    return PartsProblem(starts, tuple((rng.choice(OPERATIONS), rng.choice(OPERATIONS)) for _ in range(PARTS)))
