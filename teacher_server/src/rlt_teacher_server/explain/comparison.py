"""Several policies on one question: what each was worth. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlt_client.schemas.common import GenStatus, ModelRef
from rlt_client.schemas.explain import Explanation, ExplanationFlag, PolicySummary
from rlt_teacher_server.explain.ranking import best, rank, reward_of

__all__ = ["compare"]


def compare(policies: Sequence[ModelRef], explanations: Sequence[Explanation]) -> list[PolicySummary]:
    """A summary of each policy.

    Args:
        explanations: all of them by index, equally many of each policy; the ones at the same place had the same seed.
    """
    n = len(explanations) // len(policies)
    of_policy = [explanations[i * n : (i + 1) * n] for i in range(len(policies))]
    wins = _wins(of_policy)
    pairs = zip(policies, of_policy, strict=True)
    return [_summary(policy, own, wins.count(place)) for place, (policy, own) in enumerate(pairs)]


def _wins(of_policy: Sequence[Sequence[Explanation]]) -> list[int]:
    """Place of the policy that won, of each seed at which all have a reward and one is the highest."""
    winners = []
    for same_seed in zip(*of_policy, strict=True):
        rewards = [reward for explanation in same_seed if (reward := reward_of(explanation)) is not None]
        if len(rewards) == len(same_seed) and rewards.count(max(rewards)) == 1:
            winners.append(rewards.index(max(rewards)))
    return winners


def _summary(policy: ModelRef, own: Sequence[Explanation], wins: int) -> PolicySummary:
    rewards = [reward for explanation in own if (reward := reward_of(explanation)) is not None]
    return PolicySummary(
        policy=policy,
        samples=len(own),
        complete=sum(explanation.gen_status is GenStatus.complete for explanation in own),
        scored=len(rewards),
        leaking=sum(ExplanationFlag.refers_to_given_solution in explanation.flags for explanation in own),
        mean_reward=fmean(rewards) if rewards else None,
        best_reward=max(rewards, default=None),
        best=best(rank(own)),
        wins=wins,
    )
