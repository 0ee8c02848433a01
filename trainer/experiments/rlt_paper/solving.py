"""Raw traces of a solver: what it thinks and answers by itself, at the temperature that it was trained at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from rlt_client.formats import FormatError, shipped_formats
from rlt_paper.grading import Traces

if TYPE_CHECKING:
    from rlt_paper.commands import Log
    from rlt_paper.tasks import Example, Task

__all__ = ["solved"]


def solved(task: Task, solver: Path, examples: Sequence[Example], to: Path, log: Log, seed: int) -> Traces:
    """One trace of each example, written to `to` with the solver's own answer; those without one are left out."""
    folder, questions = to.with_name("solving"), to.with_name("solving.jsonl")
    rows = [json.dumps({"question": each.question, "answer": each.answer}) for each in examples]
    questions.parent.mkdir(parents=True, exist_ok=True)
    questions.write_text("\n".join(rows) + "\n", encoding="utf-8")
    table = {
        "seed": seed,
        "temperature": 0.7,
        "max_new_tokens": task.thoughts + task.answer_words + 2,
        "model": {"name": str(solver)},
        "data": {"path": str(questions)},
    }
    log.train("evaluate", "evaluate", folder, table)
    traces = _read(folder / "samples.parquet", examples)
    to.write_text("".join(f"{json.dumps(row)}\n" for row in traces.rows), encoding="utf-8")
    return traces


def _read(samples: Path, examples: Sequence[Example]) -> Traces:
    mini, by_question = shipped_formats()["mini"], {each.question: each for each in examples}
    found: list[tuple[Example, str, str]] = []
    for row in pq.read_table(samples, columns=["question", "completion"]).to_pylist():
        try:
            explanation, answer = mini.parse(f"{mini.student.open}{row['completion']}")
        except FormatError:
            continue
        found.append((by_question[row["question"]], f"{explanation.strip()} ", answer))
    return Traces([each for each, _, _ in found], [text for _, text, _ in found], [answer for _, _, answer in found])
