"""pass@k and means with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "mean_of", "pass_at_k"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its standard error, problems taken as drawn at random; None for a single problem."""

    value: float
    stderr: float | None


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that of k samples drawn without replacement one is right: 1 − C(n−c, k) / C(n, k).

    Unbiased for the chance that one of k fresh samples is right (arXiv 2107.03374, equation 1).

    Raises:
        ValueError: fewer than k samples, or more right ones than there are.
    """
    if not (1 <= k <= samples and 0 <= right <= samples):
        raise ValueError(f"pass@{k} of {right} right among {samples}")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def mean_of(values: Sequence[float]) -> Estimate:
    """Of one value a problem, whatever the samples of a problem have in common."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count))
