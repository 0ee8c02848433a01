"""`rlt-trainer` in a process that sends SIGKILL, or another signal, to itself or to a server, at a point of its run.

publishing  when the weights are written for the engine, and it does not know of them
published   when the engine has the weights, before it samples
roll-out    when half of the step's completions are there
sampling    when one of the step's completions is there, and others that were asked for with it are not
on-vllm     the same of a run that asks vLLM itself
scoring     when the completions are there, before they are scored
update      when the gradients are there, before the weights change
writing     in the middle of a checkpoint: the weights are written, the optimizer is not
sealing     when all of a checkpoint is written but the file that says so
explaining  between turns, when some explanations are there; explaining-on-vllm: of a run that asks vLLM itself
distilling  between turns, when the student has had so many updates
exchanging  between turns, when the reward server has a student of so many updates, and nobody has written that down
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
import transformers
from trl.trainer.sft_trainer import SFTTrainer

from rlt_trainer import checkpoints
from rlt_trainer.__main__ import main
from rlt_trainer.rl import turns
from rlt_trainer.rl.engines import TeacherEngine, VLLMEngine
from rlt_trainer.rl.rewards import ServerRewards

POINTS: dict[str, tuple[Any, str, int]] = {
    "publishing": (TeacherEngine, "publish", 1),
    "published": (TeacherEngine, "generate", 1),
    "roll-out": (TeacherEngine, "generate", 5),  # of 8
    "sampling": (TeacherEngine, "_generate", 5),  # where 4 are under way at once
    "on-vllm": (VLLMEngine, "_complete", 5),
    "scoring": (ServerRewards, "score", 5),
    "update": (torch.optim.AdamW, "step", 1),
    "writing": (transformers.Trainer, "_save_optimizer_and_scheduler", 1),
    "sealing": (checkpoints, "seal", 1),
    "explaining": (TeacherEngine, "generate", 4),
    "explaining-on-vllm": (VLLMEngine, "generate", 4),
    "distilling": (SFTTrainer, "training_step", 1),
    "exchanging": (turns, "write_whole", 1),
}
"""What is called there, and its which call of the step it is."""


class Steps(transformers.TrainerCallback):
    """Counts the updates that are done."""

    done = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        Steps.done = state.global_step

    on_step_end = on_step_begin


def arm(point: str, step: int, pid: int, by: int = signal.SIGKILL) -> None:
    owner, name, which = POINTS[point]
    original = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        here = Steps.done == step
        calls += here
        if here and calls == which:
            os.kill(pid or os.getpid(), by)
        return original(*args, **options)

    setattr(owner, name, counted)
    transformers.trainer.DEFAULT_CALLBACKS.append(Steps)


def train(argv: list[str], log: str, at: tuple[str, int] | None, pid: int, by: int = signal.SIGKILL) -> None:
    """The process: everything that it prints goes to a file, and it ends with the command's exit status.

    Args:
        at: a point, and the updates that are done then.
        pid: what is killed; 0: itself.
        by: the signal.
    """
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
    torch.set_num_threads(1)
    if at is not None:
        arm(*at, pid, by)
    sys.exit(main(argv))
