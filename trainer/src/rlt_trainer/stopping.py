"""SIGTERM and SIGINT end a run after the step that it is in, with a checkpoint; a second one ends it at once.

Kubernetes sends SIGTERM and kills after `terminationGracePeriodSeconds`: give it the time of a step.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any, Final, Self

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlt_trainer.errors import Interrupted, TrainingError

__all__ = ["Stop", "Stopping"]

log = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether the process was asked to end, while this is entered. Does nothing outside the main thread."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            self._before = {each: signal.signal(each, self._ask) for each in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._restore()
        log.warning("%s: the run ends after this step; a second one ends it at once", signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def agreed(self) -> bool:
        """Called in every process: whether any of them was asked."""
        asked: list[int | None] = gather_object([self.signal])
        self.signal = next((each for each in asked if each is not None), None)
        return self.signal is not None

    def check(self) -> None:
        """Raises `Interrupted`, if asked."""
        if self.signal is not None:
            raise Interrupted(self.signal)

    def check_done(self, state: TrainerState) -> None:
        """Raises for a run that ended before its last update: `Interrupted`, if asked, else `TrainingError`."""
        if state.global_step < state.max_steps:
            self.check()
            raise TrainingError(f"no more batches after {state.global_step} of {state.max_steps} updates")


class Stopping(TrainerCallback):
    """Args:
    every: steps between those that a run can go on from.
    """

    def __init__(self, stop: Stop, *, every: int = 1) -> None:
        self._stop = stop
        self._every = every

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        asked = self._stop.agreed()
        if asked and state.global_step % self._every == 0 and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
