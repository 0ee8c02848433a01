"""Completions with what they are worth, as tables for people: `<output>/completions/step-000010.parquet`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from accelerate.utils import gather_object

from rlt_trainer.rl.engines.base import Completion
from rlt_trainer.rl.rollout import Sampled
from rlt_trainer.texts import Writer

__all__ = ["CompletionTables"]


class CompletionTables:
    def __init__(self, folder: Path, writer: Writer) -> None:
        self._folder = folder
        self._codec = writer.codec

    def saw(self, step: int, samples: Sequence[Sampled], *, every: int) -> None:
        """In every process: a table of all processes' samples, each `every` steps; 0 for none."""
        if not every or step % every:
            return
        rows: list[dict[str, Any]] = gather_object([self._row(step, each) for each in samples])
        if PartialState().is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_parquet(self._folder / f"step-{step:06d}.parquet")

    def _row(self, step: int, sample: Sampled) -> dict[str, Any]:
        made = sample.completion if isinstance(sample.completion, Completion) else None
        return {
            "step": step,
            "question": sample.problem.question,
            "answer": sample.problem.answer,
            "completion": self._codec.decode(made.token_ids) if made else None,
            "tokens": len(made.token_ids) if made else 0,
            "finish_reason": made.finish_reason if made else None,
            "revision": made.revision if made else None,
            "student": sample.rewarded.student,
            "reward": sample.rewarded.reward,
            **{f"reward_{name}": value for name, value in sample.rewarded.components.items()},
            "flags": " ".join(sample.rewarded.flags),
            "failure": sample.rewarded.failure,
        }
