"""Does the reward tell good explanations from bad ones? Measured over HTTP, on held-out problems."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.schemas.explain import ExplainRequest
from rlt_client.schemas.reward import RewardItem
from rlt_local.demo.problems import TracedProblem

__all__ = ["LEAST_GAIN", "LEAST_SHARE", "BestOf", "Ranking", "best_of", "good_against_leak"]

LEAST_GAIN = 1.0  # nats
LEAST_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class BestOf:
    """Rewards of n explanations of each problem, shape [problems][n]; those without a reward are left out."""

    n: int
    rewards: list[list[float]]

    @property
    def mean(self) -> float:
        return fmean(fmean(some) for some in self.rewards)

    @property
    def best(self) -> float:
        return fmean(max(some) for some in self.rewards)

    @property
    def gain(self) -> float:
        return self.best - self.mean

    @property
    def good(self) -> bool:
        return self.gain >= LEAST_GAIN


@dataclass(frozen=True, slots=True)
class Ranking:
    """(reward of the good trace, reward of the leaking one) of each problem."""

    pairs: list[tuple[float, float]]

    @property
    def right(self) -> int:
        return sum(good > leak for good, leak in self.pairs)

    @property
    def good(self) -> bool:
        return self.right >= LEAST_SHARE * len(self.pairs)


async def best_of(teacher: AsyncTeacherClient, problems: Sequence[dict[str, str]], n: int) -> BestOf:
    """Sample n explanations of each problem, scored.

    Raises:
        ItemError: a problem of whose explanations not one has a reward.
    """
    requests = [
        ExplainRequest(question=each["question"], answer=each["answer"], n=n, score=True, seed=seed)
        for seed, each in enumerate(problems)
    ]
    responses = await asyncio.gather(*map(teacher.explain, requests))
    scores = [[each.score for each in response.explanations if each.score] for response in responses]
    return BestOf(n, [[s.reward for s in some if s.reward is not None] or [some[0].value()] for some in scores])


async def good_against_leak(reward: AsyncRewardClient, problems: Sequence[TracedProblem]) -> Ranking:
    """Score both hand-written traces of each problem.

    Raises:
        ItemError: a trace without a reward.
    """

    async def pair(problem: TracedProblem) -> tuple[float, float]:
        items = [
            RewardItem(question=problem.question, answer=problem.answer, explanation=text)
            for text in (problem.good, problem.leak)
        ]
        good, leak = await asyncio.gather(*map(reward.score, items))
        return good.value(), leak.value()

    return Ranking(list(await asyncio.gather(*map(pair, problems))))
