"""Whether the reward of a set of traces tells how much a student learns from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["by_weight", "pearson", "ranks"]

_WEIGHTS: Final = (0.0, 1.0, 2.5, 3.0, 5.0, 8.0)
_FEWEST: Final = 5  # sets: below it a coefficient says nothing


def by_weight(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Sets, Pearson's and Spearman's coefficients of score and greedy exact accuracy, for several λ of the score.

    The score is `r_SS − λ · r_KL` of the one scorer of all sets, as the records have it.
    """
    sets = [each["figures"] for each in records if _comparable(each)]
    if len(sets) < _FEWEST:
        return {}
    accuracy = [each["exact greedy"] for each in sets]
    found = {}
    for weight in _WEIGHTS:
        scores = [each["r_SS"] - weight * each["r_KL"] for each in sets]
        told = [_shown(scores, accuracy), _shown(ranks(scores), ranks(accuracy))]
        found[f"{weight:g}"] = [str(len(sets)), *told]
    return found


def _shown(xs: Sequence[float], ys: Sequence[float]) -> str:
    coefficient = pearson(xs, ys)
    return "undefined" if coefficient is None else f"{coefficient:.2f}"


def _comparable(record: Mapping[str, Any]) -> bool:
    figures = record.get("figures", {})
    return "exact greedy" in figures and "r_SS" in figures and "r_KL" in figures


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """None where either does not vary."""
    try:
        return statistics.correlation(xs, ys)
    except statistics.StatisticsError:
        return None


def ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of theirs."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) + 1) / 2 for value in values]
