"""Problems for the tiny models, drawn by the trainer, which runs as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rlt_client.errors import RLTError

__all__ = ["TracedProblem", "draw", "in_words"]


@dataclass(frozen=True, slots=True)
class TracedProblem:
    """A problem with two hand-written explanations: a good one, and one that only leaks the answer."""

    question: str
    answer: str
    good: str
    leak: str


def draw(file: Path, count: int, *, traces: bool = False) -> list[dict[str, str]]:
    """Write `count` held-out problems to a file of JSON lines, and return them.

    Raises:
        RLTError: the trainer refused.
    """
    command = [sys.executable, "-m", "rlt_trainer", "tiny", "problems", "--count", str(count), "--out", str(file)]
    done = subprocess.run([*command, *(["--traces"] if traces else [])], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RLTError(f"rlt-trainer tiny problems: {done.stderr.strip()}")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def in_words(question: str) -> str:
    """`Q 36 A +5 B *3 …` as a sentence for people."""
    _, start, *steps = question.split()
    verbs = {"+": "add", "*": "multiply by"}
    told = ", ".join(f"{verbs[operation[0]]} {operation[1:]}" for operation in steps[1::2])
    return f"start with {start}; {told}; everything modulo 61"
