"""One step's completions, all asked for at once, each scored as it ends."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from rlt_client.errors import RLTError
from rlt_trainer.errors import StalePolicy
from rlt_trainer.rl.engines.base import Ask, Completion, Engine, Failed, Published
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards.base import Rewarded, Rewards

__all__ = ["RollOut", "Rolled", "Sampled", "sample_seed"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sampled:
    """A completion, or why there is none, and what it is worth."""

    problem: Problem
    completion: Completion | Failed
    rewarded: Rewarded


@dataclass(frozen=True, slots=True)
class Rolled:
    """A step's samples in the order they were asked for, and where its time went, in seconds."""

    samples: list[Sampled]
    generating_s: float
    """Until the last completion had ended."""
    waiting_s: float
    """From then on until the last reward was there."""


class RollOut:
    """Args:
    overlap: score each completion as it ends; else all of them after the last.
    together: completions asked for in one request.
    """

    def __init__(self, engine: Engine, rewards: Rewards, *, overlap: bool = True, together: int = 1) -> None:
        self._engine = engine
        self._rewards = rewards
        self._overlap = overlap
        self._together = together
        self._ended = 0.0

    async def __call__(self, problems: Sequence[Problem], seeds: Sequence[int], weights: Published) -> Rolled:
        """Sample every problem once, with its seed, and score what was sampled.

        Args:
            weights: what must have sampled.

        Raises:
            StalePolicy: other weights did.
            RLTError: engine or reward server refuse such requests, or their patience is over.
        """
        began = self._ended = time.perf_counter()
        whole = list(zip(problems, seeds, strict=True))
        parts = [whole[first : first + self._together] for first in range(0, len(whole), self._together)]
        if self._overlap:
            samples = _joined(await _all(self._sample_and_score(part, weights) for part in parts))
        else:
            made = _joined(await _all(self._sample(part, weights) for part in parts))
            samples = await self._score(problems, made)
        return Rolled(samples, self._ended - began, time.perf_counter() - self._ended)

    async def _sample_and_score(self, part: Sequence[tuple[Problem, int]], weights: Published) -> list[Sampled]:
        made = await self._sample(part, weights)
        return await self._score([problem for problem, _ in part], made)

    async def _sample(self, part: Sequence[tuple[Problem, int]], weights: Published) -> Sequence[Completion | Failed]:
        made = await self._engine.generate([Ask(problem.prompt_ids, seed) for problem, seed in part], weights)
        for each in made:
            if isinstance(each, Completion) and each.revision != weights.revision:
                raise StalePolicy(
                    f"the engine sampled with weights {each.revision}, not with {weights.revision}, which were "
                    "published for this step: does somebody else publish under this name?"
                )
        self._ended = time.perf_counter()
        return made

    async def _score(self, problems: Sequence[Problem], made: Sequence[Completion | Failed]) -> list[Sampled]:
        return await _all(self._scored(*pair) for pair in zip(problems, made, strict=True))

    async def _scored(self, problem: Problem, made: Completion | Failed) -> Sampled:
        if isinstance(made, Failed):
            return Sampled(problem, made, Rewarded(None, failure=made.type))
        return Sampled(problem, made, await self._rewards.score(problem, made))


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failures:
        raise next((each for each in failures.exceptions if isinstance(each, RLTError)), failures) from None
    return [task.result() for task in tasks]


def _joined(parts: Iterable[Iterable[T]]) -> list[T]:
    return list(chain.from_iterable(parts))


def sample_seed(seed: int, step: int, place: int) -> int:
    """The seed of one completion: the same in a run that goes on after a crash, another in each step and place."""
    digest = hashlib.sha256(f"{seed}/{step}/{place}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
