"""Every number of the parts task, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlt_trainer.tiny.recipe import Fitting, ModelShape


@dataclass(frozen=True, slots=True)
class PartsBaseRecipe:
    """Pre-training: a start value and one operation can be looked up and applied, and labelled results copied.

    No two operations in a row, no question, no explanation.
    """

    shape: ModelShape = field(default_factory=ModelShape)
    fitting: Fitting = field(default_factory=lambda: Fitting(steps=1400, learning_rate=3e-3))  # passes from step 700 on
    fact_share: float = 0.35  # the 488 facts
    lookup_share: float = 0.35  # the slowest to be learned of the four
    recall_share: float = 0.10
    copy_share: float = 0.20
    document_tokens: int = 60  # a table of eight labels with what is asked of it
    gate: float = 0.99  # of each document type; below it nothing built on the base works
    attempts: int = 4  # seeds tried before giving up


@dataclass(frozen=True, slots=True)
class PartsMixture:
    """How each part of a corpus trace is written, drawn independently; the four shares sum to 1."""

    good: float = 0.12  # .12^4 = .0002 of the traces are good throughout: too few for a reward of 0 or 1 to find
    skip: float = 0.68
    leak: float = 0.15
    wrong: float = 0.05
    digression: float = 0.10  # before each part
    longest_digression: int = 3
    longest_trace: int = 37  # tokens of thought; a good trace has 28


CORPORA = {
    "a": PartsMixture(),
    "b": PartsMixture(good=0.25, skip=0.60, leak=0.10, wrong=0.05),  # .0035 good throughout: enough for 0 or 1 to find
}
