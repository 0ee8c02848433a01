"""The mixed corpus that a teacher of the parts task starts from."""

from __future__ import annotations

import random

from rlt_trainer.tiny.parts.recipe import PartsMixture
from rlt_trainer.tiny.parts.task import PartsProblem, Use, parts_problems
from rlt_trainer.tiny.parts.traces import mixed_parts_trace


def parts_corpus(count: int, mixture: PartsMixture, seed: int = 0) -> list[tuple[PartsProblem, str]]:
    """Problems of the corpus's own, with one mixed trace each."""
    rng = random.Random(f"parts corpus {seed}")  # noqa: S311 - reproducible data, nothing secret
    return [(problem, mixed_parts_trace(problem, mixture, rng)) for problem in parts_problems(count, Use.corpus, seed)]
