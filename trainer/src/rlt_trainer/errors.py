"""What ends a run, each with a message that says what to do.

RLTError
└── TrainingError
    ├── BadData          rows that cannot be trained on
    ├── BadConfig        settings that do not fit the model, the data or the processes
    ├── StalePolicy      an engine sampled with other weights than those that were published
    ├── StaleStudent     a reward server scored with another student than before
    ├── Diverged         the engine's log-probs are too far from the trainer's
    ├── RewardsMissing   too many completions have no reward
    └── Interrupted      a signal asked for the end; the run can go on
"""

from __future__ import annotations

import signal

from rlt_client.errors import RLTError

__all__ = [
    "BadConfig",
    "BadData",
    "Diverged",
    "Interrupted",
    "RewardsMissing",
    "StalePolicy",
    "StaleStudent",
    "TrainingError",
]


class TrainingError(RLTError):
    """Ends a run."""


class BadData(TrainingError):
    """Rows that cannot be trained on."""


class BadConfig(TrainingError):
    """Settings that do not fit the model, the data or the processes."""


class StalePolicy(TrainingError):
    """An engine sampled with other weights than those that were published for this step."""


class StaleStudent(TrainingError):
    """A reward server scored with another student than the one that the run began, or its turn, with."""


class Diverged(TrainingError):
    """The engine's log-probs of the sampled tokens are too far from the trainer's."""


class RewardsMissing(TrainingError):
    """Too many completions have no reward."""


class Interrupted(TrainingError):
    """A signal asked for the end. What was done is kept, and the same command goes on from there."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}; the same command goes on from here")
        self.exit_code = 128 + number
        """As shells tell of a signal: not 0, so that Kubernetes starts the job again."""
