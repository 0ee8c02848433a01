"""The task: a number in Z_61 and four labelled operations; the answer is the final value.

    question  `Q 36 A +5 B *3 C +11 D +5`      answer  `17`

249,856 questions exist. One in eight is held out by a hash of its text, so that no training question, whatever its
seed, is ever a held-out one.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

MODULUS = 61  # 4.1 nats of answer: with one-digit answers a lucky guess is nearly as plausible as four good steps
CHAIN = 4  # longer chains make good traces too rare in the corpus
OPERATIONS = ("+1", "+2", "+5", "+11", "+23", "*2", "*3", "*7")
LABELS = ("A", "B", "C", "D", "E", "F", "G", "H")
HELD_OUT_ONE_IN = 8
QUESTIONS = MODULUS * len(OPERATIONS) ** CHAIN


def apply(value: int, operation: str) -> int:
    """One operation modulo 61."""
    operand = int(operation[1:])
    return (value + operand if operation[0] == "+" else value * operand) % MODULUS


@dataclass(frozen=True, slots=True)
class Problem:
    """A start value and its operations, labelled A, B, C, D in this order."""

    start: int
    operations: tuple[str, ...]

    @property
    def steps(self) -> list[tuple[str, str, int]]:
        """(label, operation, value after it) of each step."""
        steps, value = [], self.start
        for label, operation in zip(LABELS, self.operations, strict=False):
            value = apply(value, operation)
            steps.append((label, operation, value))
        return steps

    @property
    def question(self) -> str:
        labelled = (f"{label} {operation}" for label, operation, _ in self.steps)
        return f"Q {self.start} {' '.join(labelled)}"

    @property
    def answer(self) -> str:
        return str(self.steps[-1][2])

    @property
    def held_out(self) -> bool:
        """True for the one question in eight that nothing trains on."""
        digest = hashlib.sha256(self.question.encode()).digest()
        return digest[0] % HELD_OUT_ONE_IN == 0


def problems(count: int, seed: int = 0, *, held_out: bool = True) -> list[Problem]:
    """Different problems drawn at random, from the held-out eighth or from the rest.

    Raises:
        ValueError: a negative count, or more than half of the problems that exist (drawing would crawl).
    """
    share = 1 / HELD_OUT_ONE_IN if held_out else 1 - 1 / HELD_OUT_ONE_IN
    if not 0 <= count <= share * QUESTIONS / 2:
        raise ValueError(f"count must be between 0 and {int(share * QUESTIONS / 2)}, not {count}")
    rng = random.Random(f"problems {seed} {held_out}")  # noqa: S311 - reproducible data, nothing secret
    drawn: dict[Problem, None] = {}
    while len(drawn) < count:
        problem = Problem(rng.randrange(MODULUS), tuple(rng.choices(OPERATIONS, k=CHAIN)))
        if problem.held_out == held_out:
            drawn[problem] = None
    return list(drawn)
