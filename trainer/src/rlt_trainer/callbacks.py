"""What every run does besides training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from accelerate import PartialState
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlt_trainer import checkpoints

__all__ = ["Figures", "Sealing", "equip"]

_HIDDEN: Final = ("epoch", "total_flos")


def equip(trainer: Trainer, *callbacks: TrainerCallback) -> None:
    """Give a trainer these callbacks, and lines of figures on stderr where transformers prints to stdout."""
    if trainer.args.disable_tqdm:  # else a bar tells them
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Figures())
    for callback in callbacks:
        trainer.add_callback(callback)


class Figures(TrainerCallback):
    """One line a log: `step 3/20  loss 0.6931  grad_norm 1.2`."""

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        told = [f"{name} {_short(value)}" for name, value in logs.items() if name not in _HIDDEN]
        sys.stderr.write("  ".join([f"step {state.global_step}/{state.max_steps}", *told]) + "\n")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
