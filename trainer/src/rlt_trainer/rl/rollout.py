"""One step's completions, all asked for at once, each scored as it ends."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rlt_client.errors import RLTError
from rlt_trainer.errors import StalePolicy
from rlt_trainer.rl.engines.base import Completion, Engine, Failed
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards.base import Rewarded, Rewards

__all__ = ["Rolled", "Sampled", "roll_out", "sample_seed"]


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


async def roll_out(
    problems: Sequence[Problem],
    seeds: Sequence[int],
    engine: Engine,
    rewards: Rewards,
    *,
    revision: str,
    overlap: bool = True,
) -> Rolled:
    """Sample every problem once, with its seed, and score what was sampled.

    Args:
        revision: of the weights that must have sampled.
        overlap: score each completion as it ends; else all of them after the last.

    Raises:
        StalePolicy: other weights sampled.
        RLTError: engine or reward server refuse such requests, or their patience is over.
    """
    began = time.perf_counter()
    ended = began

    async def generate(problem: Problem, seed: int) -> Completion | Failed:
        nonlocal ended
        made = await engine.generate(problem.prompt_ids, seed=seed)
        if isinstance(made, Completion) and made.revision != revision:
            raise StalePolicy(f"the engine sampled with weights {made.revision}, not {revision} of this step")
        ended = time.perf_counter()
        return made

    async def score(problem: Problem, made: Completion | Failed) -> Rewarded:
        if isinstance(made, Failed):
            return Rewarded(None, failure=made.type)
        return await rewards.score(problem, made)

    async def both(problem: Problem, seed: int) -> Sampled:
        made = await generate(problem, seed)
        return Sampled(problem, made, await score(problem, made))

    pairs = list(zip(problems, seeds, strict=True))
    if overlap:
        samples = await _all(both(*pair) for pair in pairs)
    else:
        completions = await _all(generate(*pair) for pair in pairs)
        worth = await _all(score(*pair) for pair in zip(problems, completions, strict=True))
        samples = [Sampled(*each) for each in zip(problems, completions, worth, strict=True)]
    return Rolled(samples, ended - began, time.perf_counter() - ended)


async def _all(calls: object) -> list:  # type: ignore[type-arg]  # of whatever they return
    """All results in order; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]  # type: ignore[attr-defined]
    except ExceptionGroup as failures:
        raise next((each for each in failures.exceptions if isinstance(each, RLTError)), failures) from None
    return [task.result() for task in tasks]


def sample_seed(seed: int, step: int, index: int) -> int:
    """The seed of one completion: the same in a run that goes on after a crash, another in each step and place."""
    digest = hashlib.sha256(f"{seed}/{step}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
