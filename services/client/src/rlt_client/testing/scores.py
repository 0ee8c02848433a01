"""Scores without models."""

from __future__ import annotations

import hashlib
from typing import Final

from rlt_client.schemas.common import Problem, ScoreStatus
from rlt_client.schemas.reward import (
    Components,
    Counts,
    KLEstimator,
    KLSource,
    Preset,
    ResolvedSpec,
    RewardItem,
    Score,
    SpecRequest,
)

__all__ = ["hashed_reward", "make_score", "of_spec", "resolved"]

_SPEC: Final = ResolvedSpec(
    preset=Preset.rlt,
    kl=KLEstimator.k1,
    lambda_=3.0,
    ss_min_coef=0.01,
    kl_max_coef=0.01,
    format_penalty=-1.0,
    student_temperature=0.7,
    teacher_temperature=0.7,
)
_NO_KL: Final = dict.fromkeys(("kl", "lambda", "kl_max_coef", "teacher_temperature"))
_WITHOUT_KL: Final = {Preset.ss_only, Preset.rlpr, Preset.verifree, Preset.info_gain}
_WITH_BASELINE: Final = {Preset.rlpr, Preset.info_gain}


def resolved(asked: Preset | SpecRequest) -> ResolvedSpec:
    """What was asked for, with the paper's coefficients where it is silent."""
    given = asked if isinstance(asked, SpecRequest) else SpecRequest(preset=asked)
    unused = _NO_KL if given.preset in _WITHOUT_KL else {}
    return ResolvedSpec.model_validate({**_SPEC.model_dump(), **given.model_dump(exclude_none=True), **unused})


def make_score(reward: float | None = -1.0, *, index: int = 0, id: str | None = None, error: str = "") -> Score:
    """A `Score` with plausible components; with `error`, a failed one of that problem type."""
    if error:
        problem = Problem(type=error, title=error.replace("_", " "))
        return Score(id=id, index=index, status=ScoreStatus.score_error, error=problem)
    assert reward is not None
    return Score(
        id=id,
        index=index,
        status=ScoreStatus.scored,
        reward=reward,
        components=Components(
            ss_mean=reward, ss_min=reward, ss_sum=reward, kl_mean=0.0, kl_max=0.0, r_ss=reward, r_kl=0.0, format=0.0
        ),
        counts=Counts(n_answer=1, n_think=1, student_tokens=4),
        kl_source=KLSource.sent,
    )


def of_spec(score: Score, spec: ResolvedSpec) -> Score:
    """With the components that only some specs have."""
    if score.components is None:
        return score
    baseline = 0.0 if spec.preset in _WITH_BASELINE else None
    unmapped = score.reward if spec.mapping else None
    components = score.components.model_copy(update={"baseline": baseline, "unmapped": unmapped})
    return score.model_copy(update={"components": components})


def hashed_reward(item: RewardItem) -> float:
    """A reward between −10 and 0 that depends on nothing but the item's texts."""
    text = "\0".join(filter(None, (item.question, item.answer, item.completion, item.explanation)))
    return -10 * int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
