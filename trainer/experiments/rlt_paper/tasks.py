"""The two tasks of the miniature behind one face: questions, traces that are written by hand, and how a trace reads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from rlt_trainer.tiny import Mixture, Problem, WarmupRecipe, ensure_base, good_trace, problems
from rlt_trainer.tiny.documents import corpus
from rlt_trainer.tiny.parts import (
    CORPORA,
    PartsMixture,
    PartsProblem,
    Use,
    good_parts_trace,
    parts_base,
    parts_corpus,
    parts_problems,
    style_of,
)
from rlt_trainer.tiny.parts.traces import mixed_parts_trace
from rlt_trainer.tiny.task import CHAIN, MODULUS, OPERATIONS
from rlt_trainer.tiny.traces import DIGRESSION, LEAK, mixed_trace

__all__ = ["TASKS", "Example", "Style", "Task"]

Row = dict[str, str]


class Example(Protocol):
    """A problem of either task."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Style:
    """What one trace is like: shares of good and of leaking parts (or steps), whether it digresses, its words."""

    good: float
    leaked: float
    digresses: float
    words: int


class Task(Protocol):
    """Questions of three uses that share none: the warm-up's corpus; RL and distillation; the test."""

    name: str
    weight: float
    """λ of the paper's reward that the trial with a hand-written loop found good here."""
    thoughts: int
    """Tokens of an explanation at most."""
    answer_words: int
    warmup_steps: int

    def base(self) -> Path:
        """The folder of the pre-trained base."""
        ...

    def corpus(self, kind: str, seed: int) -> list[Row]:
        """Rows of the warm-up, explanation included."""
        ...

    def questions(self, count: int, seed: int, *, test: bool) -> Sequence[Any]: ...
    def good(self, example: Any) -> str: ...
    def mixed(self, examples: Sequence[Any], shares: dict[str, float], seed: int) -> list[str]:
        """Traces written with these shares of styles in place of the corpus's."""
        ...

    def style(self, example: Any, trace: str) -> Style: ...
    def transfer(self, count: int, seed: int, *, test: bool) -> dict[str, Sequence[Any]]:
        """Questions of another length, by name."""
        ...


class PartsTask:
    """Four independent parts; the answer has eight tokens."""

    name = "parts"
    weight = 2.5
    thoughts = 37
    answer_words = 8
    warmup_steps = 600

    def base(self) -> Path:
        return parts_base()

    def corpus(self, kind: str, seed: int) -> list[Row]:
        return [_row(each, trace) for each, trace in parts_corpus(_CORPUS, CORPORA[kind], seed)]

    def questions(self, count: int, seed: int, *, test: bool) -> Sequence[PartsProblem]:
        return parts_problems(count, Use.test if test else Use.training, seed)

    def good(self, example: PartsProblem) -> str:
        return good_parts_trace(example)

    def mixed(self, examples: Sequence[PartsProblem], shares: dict[str, float], seed: int) -> list[str]:
        mixture = PartsMixture(*_four(shares), digression=shares.get("digression", PartsMixture().digression))
        rng = random.Random(f"mixture {seed}")  # noqa: S311 - reproducible data, nothing secret
        return [mixed_parts_trace(each, mixture, rng) for each in examples]

    def style(self, example: PartsProblem, trace: str) -> Style:
        found, parts = style_of(example, trace), len(example.parts)
        return Style(found.good_parts / parts, found.leaked_parts / parts, float(found.digresses), found.words)

    def transfer(self, count: int, seed: int, *, test: bool) -> dict[str, Sequence[PartsProblem]]:
        whole = self.questions(count, seed, test=test)
        shorter = (PartsProblem(each.starts[:3], each.operations[:3]) for each in whole)
        return {"three parts": list(dict.fromkeys(shorter))}


class ChainTask:
    """One chain of four operations; the answer is one token."""

    name = "chain"
    weight = 8.0
    thoughts = 27
    answer_words = 1
    warmup_steps = 400

    def base(self) -> Path:
        return ensure_base()

    def corpus(self, kind: str, seed: int) -> list[Row]:  # noqa: ARG002 - it has one
        return [_row(each, trace) for each, trace in corpus(WarmupRecipe(), seed)]

    def questions(self, count: int, seed: int, *, test: bool) -> Sequence[Problem]:
        """Training questions are drawn from others than the corpus of this seed."""
        if test:
            return problems(count, seed, held_out=True)
        seen = {each for each, _ in corpus(WarmupRecipe(), seed)}
        drawn = problems(count + _CORPUS, seed + _APART, held_out=False)
        return [each for each in drawn if each not in seen][:count]

    def good(self, example: Problem) -> str:
        return good_trace(example)

    def mixed(self, examples: Sequence[Problem], shares: dict[str, float], seed: int) -> list[str]:
        mixture = Mixture(*_four(shares), digression=shares.get("digression", Mixture().digression))
        rng = random.Random(f"mixture {seed}")  # noqa: S311 - reproducible data, nothing secret
        return [mixed_trace(each, mixture, rng) for each in examples]

    def style(self, example: Problem, trace: str) -> Style:
        words = trace.split()
        text, steps = f" {' '.join(word for word in words if word != DIGRESSION)} ", example.steps
        good = sum(f" {label} {operation} {value} " in text for label, operation, value in steps)
        leaked = min(words.count(LEAK), len(steps))
        return Style(good / len(steps), leaked / len(steps), float(DIGRESSION in words), len(words))

    def transfer(self, count: int, seed: int, *, test: bool) -> dict[str, Sequence[Problem]]:
        rng = random.Random(f"transfer {seed} {test}")  # noqa: S311 - reproducible data, nothing secret
        return {f"chains of {length}": _chains(rng, count, length, test=test) for length in (CHAIN - 1, CHAIN + 1)}


TASKS: Final[dict[str, Task]] = {"parts": PartsTask(), "chain": ChainTask()}
_CORPUS: Final = 10_000
_APART: Final = 1_000_000  # from every seed that a corpus is drawn with


def _four(shares: dict[str, float]) -> tuple[float, float, float, float]:
    """As the mixtures of both tasks begin; what is not named has no share."""
    good, skip, leak, wrong = (shares.get(style, 0.0) for style in ("good", "skip", "leak", "wrong"))
    return good, skip, leak, wrong


def _row(example: Example, trace: str) -> Row:
    return {"question": example.question, "answer": example.answer, "explanation": trace}


def _chains(rng: random.Random, count: int, length: int, *, test: bool) -> Sequence[Problem]:
    drawn: dict[Problem, None] = {}
    while len(drawn) < count:
        problem = Problem(rng.randrange(MODULUS), tuple(rng.choices(OPERATIONS, k=length)))
        if problem.held_out == test:
            drawn[problem] = None
    return list(drawn)
