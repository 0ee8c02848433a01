"""What traces are like and worth, and how often a student is right."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from rlt_client.schemas.reward import RewardItem
from rlt_paper.tasks import Example, Task

if TYPE_CHECKING:
    from rlt_paper.servers import Stack

__all__ = ["Traces", "averages", "graded", "scored"]


@dataclass(frozen=True, slots=True)
class Traces:
    """Explanations of examples, with the answer that each is followed by: a solver's own may be wrong."""

    examples: Sequence[Example]
    texts: Sequence[str]
    answers: Sequence[str]

    @property
    def rows(self) -> list[dict[str, str]]:
        """What a student is distilled on."""
        return [
            {"question": each.question, "answer": answer, "explanation": text}
            for each, text, answer in zip(self.examples, self.texts, self.answers, strict=True)
        ]

    @classmethod
    def of_rows(cls, examples: Sequence[Example], path: Path) -> Traces:
        """Those of a file of rows; examples that have none in it are left out."""
        by_question = {each.question: each for each in examples}
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return cls(
            [by_question[row["question"]] for row in rows],
            [row["explanation"] for row in rows],
            [row["answer"] for row in rows],
        )


def averages(task: Task, traces: Traces) -> dict[str, float]:
    """Means over the traces of what their style is; no reward sees any of it."""
    styles = [task.style(each, text) for each, text in zip(traces.examples, traces.texts, strict=True)]
    return {
        "traces": len(styles),
        "good parts": statistics.fmean(each.good for each in styles),
        "all good": statistics.fmean(each.good == 1 for each in styles),
        "leaked parts": statistics.fmean(each.leaked for each in styles),
        "digressing": statistics.fmean(each.digresses for each in styles),
        "words": statistics.fmean(each.words for each in styles),
    }


def scored(traces: Traces, stack: Stack) -> dict[str, float]:
    """Mean reward of one scorer for all sets, with the right answers: the warm-up in both roles, λ 3."""
    pairs = zip(traces.examples, traces.texts, strict=True)
    items = [RewardItem(question=each.question, answer=each.answer, explanation=text) for each, text in pairs]
    found = [each for each in stack.score(items) if each.reward is not None and each.components is not None]
    figures = {"scored": float(len(found))}
    for ours, theirs in {"r_SS": "r_ss", "r_KL": "r_kl", "KL mean": "kl_mean"}.items():
        values = [getattr(each.components, theirs) for each in found]
        known = [float(value) for value in values if value is not None]
        if known:
            figures[ours] = statistics.fmean(known)
    return figures | {"RLT score": statistics.fmean(each.reward for each in found if each.reward is not None)}


def graded(folder: Path, answer_words: int) -> dict[str, float]:
    """Of a finished evaluation: the share of answers that are right throughout, and the share of right values."""
    table = pq.read_table(folder / "samples.parquet", columns=["answer", "given"]).to_pylist()
    pairs = [(row["answer"].split(), (row["given"] or "").split()) for row in table]
    exact = statistics.fmean(right == given for right, given in pairs)
    return {"exact": exact, "parts": statistics.fmean(_values_right(*pair, answer_words) for pair in pairs)}


def _values_right(right: Sequence[str], given: Sequence[str], words: int) -> float:
    """The share of values in their places, labels aside: where an answer has labels, every second word is one."""
    step = 2 if words > 1 else 1
    wanted = list(right[step - 1 :: step])
    return sum(one == other for one, other in zip(given[step - 1 :: step], wanted, strict=False)) / len(wanted)
