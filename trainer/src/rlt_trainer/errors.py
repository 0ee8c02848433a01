"""What ends a run, each with a message that says what to do.

RLTError
└── TrainingError
    ├── BadData          rows that cannot be trained on
    ├── BadConfig        settings that do not fit the model, the data or the processes
    ├── StalePolicy      an engine sampled with other weights than those that were published
    ├── Diverged         the engine's log-probs are too far from the trainer's
    └── RewardsMissing   too many completions have no reward
"""

from __future__ import annotations

from rlt_client.errors import RLTError

__all__ = ["BadConfig", "BadData", "Diverged", "RewardsMissing", "StalePolicy", "TrainingError"]


class TrainingError(RLTError):
    """Ends a run."""


class BadData(TrainingError):
    """Rows that cannot be trained on."""


class BadConfig(TrainingError):
    """Settings that do not fit the model, the data or the processes."""


class StalePolicy(TrainingError):
    """An engine sampled with other weights than those that were published for this step."""


class Diverged(TrainingError):
    """The engine's log-probs of the sampled tokens are too far from the trainer's."""


class RewardsMissing(TrainingError):
    """Too many completions have no reward."""
