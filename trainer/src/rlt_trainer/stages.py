"""The commands that train and measure: each reads its configuration, and imports what is heavy only to run."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Final

from rlt_client.errors import RLTError
from rlt_trainer.errors import Interrupted
from rlt_trainer.launched import is_first, processes

__all__ = ["STAGES", "StageCommand", "run"]


@dataclass(frozen=True, slots=True)
class StageCommand:
    """`config` names a class of `rlt_trainer.config`, `runner` a module whose `run` takes one and returns a path."""

    help: str
    config: str
    runner: str
    tells: bool = False
    """Whether `run` writes on stdout itself, what was found; else nothing is there but the path."""


STAGES: Final = {
    "sft": StageCommand("warm-up of a teacher on explanations", "SFTConfig", "rlt_trainer.sft"),
    "rl": StageCommand("GRPO with the reward of a student, or for right answers", "RLConfig", "rlt_trainer.rl.run"),
    "distill": StageCommand("a student learns from traces", "DistillConfig", "rlt_trainer.distill"),
    "evaluate": StageCommand("how often a student is right", "EvaluateConfig", "rlt_trainer.evaluate.run", tells=True),
}


def run(name: str, argv: Sequence[str], *, prog: str) -> int:
    """The exit status: 0, 1 for a run that ended with an error (told on stderr), 128 + N for one that signal N ended, 2
    for wrong usage by itself."""
    from rlt_trainer import config as configs

    _quiet()
    stage = STAGES[name]
    config, planned_for = configs.load(getattr(configs, stage.config), argv, prog=prog)
    try:
        if planned_for is not None:
            from rlt_trainer.planning import plan

            sys.stdout.write(plan(config, planned_for or processes()))
            return 0
        _log_to_stderr()
        with redirect_stdout(sys.stdout if stage.tells else sys.stderr):  # trackio and wandb print on it
            made = importlib.import_module(stage.runner).run(config)
    except Interrupted as stop:
        sys.stderr.write(f"{prog}: {stop}\n")
        return stop.exit_code
    except RLTError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 1
    if is_first():
        sys.stdout.write(f"{made}\n")
    return 0


def _log_to_stderr() -> None:
    """What this package says, by the first process; of others' libraries warnings alone (httpx tells every request)."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("rlt_trainer").setLevel(logging.INFO if is_first() else logging.WARNING)


def _quiet() -> None:
    """Read by Hugging Face's libraries when they are imported: who wants it otherwise says so in the environment."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL tells its makers of each run
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
