"""What every run does besides training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlt_trainer import checkpoints

__all__ = ["Sealing"]


class Sealing(TrainerCallback):
    """Makes a checkpoint count once all of it is on the disk, and removes older ones.

    Args:
        extras: write into the checkpoint's folder before that; called in every process.
        facts: for the mark; called in the first process.
    """

    def __init__(
        self,
        keep: int,
        extras: Sequence[Callable[[Path], None]] = (),
        facts: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._keep = keep
        self._extras = extras
        self._facts = facts

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        output = Path(str(args.output_dir))
        folder = output / f"checkpoint-{state.global_step}"
        for extra in self._extras:
            extra(folder)
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            checkpoints.seal(folder, {"step": state.global_step, **self._facts()})
            checkpoints.prune(output, self._keep)
