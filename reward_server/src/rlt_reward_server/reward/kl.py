"""Estimators of the divergence at one think token, from the log-probs of the sampled token under both models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from rlt_client.schemas.reward import KLEstimator

__all__ = ["ESTIMATORS", "divergence"]


def k1(teacher: float, student: float) -> float:
    """log p_teacher − log p_student (arXiv 2506.08388; the authors' setting)."""
    return teacher - student


def k3(teacher: float, student: float) -> float:
    """kl − 1 + exp(−kl), never negative; infinite where exp overflows (J. Schulman, Approximating KL Divergence)."""
    kl = teacher - student
    return math.expm1(-kl) + kl if kl > -MAX_EXPONENT else math.inf


MAX_EXPONENT: Final = 700.0  # exp(709.8) is the largest double

ESTIMATORS: Final[dict[KLEstimator, Callable[[float, float], float]]] = {KLEstimator.k1: k1, KLEstimator.k3: k3}


def divergence(estimator: KLEstimator, teacher: Sequence[float], student: Sequence[float]) -> list[float]:
    """One value a think token, shape [n_think]."""
    estimate = ESTIMATORS[estimator]
    return [estimate(t, s) for t, s in zip(teacher, student, strict=True)]
