from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rlt_trainer.rl.engines.base import Completion
from rlt_trainer.rl.problems import Problem

__all__ = ["Rewarded", "Rewards"]


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A reward with what it is made of; `reward` is None where it could not be computed, and `failure` says why."""

    reward: float | None
    components: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    failure: str | None = None
    student: str | None = None
    """Revision of the student that computed it."""


class Rewards(Protocol):
    async def score(self, problem: Problem, completion: Completion) -> Rewarded:
        """The reward of one completion. Calls made at the same time may travel together.

        Raises:
            RLTError: the service refuses such requests, or its patience is over.
        """
        ...

    async def aclose(self) -> None: ...
