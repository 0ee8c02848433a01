"""The commands that train and measure: each reads its configuration, and imports what is heavy only to run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rlt_client.errors import RLTError
from rlt_trainer.errors import Interrupted

__all__ = ["STAGES", "StageCommand", "run"]


@dataclass(frozen=True, slots=True)
class StageCommand:
    """`config` names a class of `rlt_trainer.config`, `runner` a module whose `run` takes one and returns a path."""

    help: str
    config: str
    runner: str


STAGES: Final = {
    "rl": StageCommand("GRPO with the reward of a student, or for right answers", "RLConfig", "rlt_trainer.rl.run"),
}


def run(name: str, argv: Sequence[str], *, prog: str) -> int:
    """The exit status: 0, 1 for a run that ended with an error (told on stderr), 128 + N for one that signal N ended, 2
    for wrong usage by itself."""
    from rlt_trainer import config as configs

    stage = STAGES[name]
    config, dry = configs.load(getattr(configs, stage.config), argv, prog=prog)
    try:
        if dry:
            from rlt_trainer.planning import plan

            sys.stdout.write(plan(config))
            return 0
        made = importlib.import_module(stage.runner).run(config)
    except Interrupted as stop:
        sys.stderr.write(f"{prog}: {stop}\n")
        return stop.exit_code
    except RLTError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 1
    sys.stdout.write(f"{made}\n")
    return 0
