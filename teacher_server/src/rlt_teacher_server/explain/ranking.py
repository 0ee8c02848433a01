"""Which explanations are returned, in which order, and which one is the best. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlt_client.schemas.common import GenStatus
from rlt_client.schemas.explain import Dropped, ExplainOptions, Explanation, ExplanationFlag, Incomplete, Keep

__all__ = ["Selection", "best", "is_doomed", "rank", "reward_of", "select"]


@dataclass(frozen=True, slots=True)
class Selection:
    explanations: list[Explanation]
    best: int | None
    dropped: Dropped


def select(explanations: Iterable[Explanation], options: ExplainOptions) -> Selection:
    """What the request wants to see, highest reward first."""
    reasons: Counter[str] = Counter()
    kept: list[Explanation] = []
    for explanation in rank(explanations):
        reason = _reason(explanation, options)
        if reason is None:
            kept.append(explanation)
        else:
            reasons[reason] += 1
    chosen = best(kept)
    if options.keep is Keep.best:
        reasons.update(_lost_to_best(explanation) for explanation in kept if explanation.index != chosen)
        kept = [explanation for explanation in kept if explanation.index == chosen]
    return Selection(kept, chosen, Dropped(**reasons))


def rank(explanations: Iterable[Explanation]) -> list[Explanation]:
    """Highest reward first, then what has none; equals by index."""
    return sorted(explanations, key=_place)


def best(ranked: Sequence[Explanation]) -> int | None:
    """`index` of the first that is complete and has a reward."""
    found = (e.index for e in ranked if e.gen_status is GenStatus.complete and reward_of(e) is not None)
    return next(found, None)


def is_doomed(explanation: Explanation, options: ExplainOptions) -> bool:
    """Whether it is going to be dropped, whatever its reward is."""
    return _flaw(explanation, options) is not None


def reward_of(explanation: Explanation) -> float | None:
    return explanation.score.reward if explanation.score else None


def _place(explanation: Explanation) -> tuple[bool, float, int]:
    reward = reward_of(explanation)
    return reward is None, -(reward or 0.0), explanation.index


def _reason(explanation: Explanation, options: ExplainOptions) -> str | None:
    """The name of the first of the request's conditions that it does not meet."""
    flaw = _flaw(explanation, options)
    if flaw is not None or options.min_reward is None:
        return flaw
    reward = reward_of(explanation)
    if reward is None:
        return "unscored"
    return "min_reward" if reward < options.min_reward else None


def _lost_to_best(explanation: Explanation) -> str:
    missing = explanation.gen_status is GenStatus.complete and reward_of(explanation) is None
    return "unscored" if missing else "not_best"


def _flaw(explanation: Explanation, options: ExplainOptions) -> str | None:
    if options.incomplete is Incomplete.drop and explanation.gen_status is not GenStatus.complete:
        return "incomplete"
    if options.drop_leaks and ExplanationFlag.refers_to_given_solution in explanation.flags:
        return "leaks"
    return None
