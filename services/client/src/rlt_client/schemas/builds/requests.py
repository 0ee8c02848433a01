"""What a build is asked to do."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from rlt_client.schemas.builds.kinds import BuildKind, Component, SelectionMode, Truncated
from rlt_client.schemas.builds.problems import BuildProblem, Source
from rlt_client.schemas.builds.texts import Storable
from rlt_client.schemas.common import GenStatus, Request
from rlt_client.schemas.reward import Preset, SpecRequest

__all__ = [
    "MAX_INLINE_PROBLEMS",
    "MAX_NAME",
    "MAX_SAMPLES_PER_PROBLEM",
    "MAX_TOKENS",
    "NAME_PATTERN",
    "BuildRequest",
    "PriorityRequest",
    "RerankRequest",
    "RescoreRequest",
    "RetryRequest",
    "Sampling",
    "Selection",
    "Weights",
]

MAX_INLINE_PROBLEMS = 1_000
MAX_SAMPLES_PER_PROBLEM = 1_024
MAX_NAME = 100
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_TOKENS = 2**31
"""Below it lie all lengths, and what a column of 32 bits holds."""


class Sampling(Request):
    """How explanations are sampled. The log-probs serve the KL term only with top_p 1 and no top_k."""

    max_tokens: int | None = Field(
        default=None, ge=1, lt=MAX_TOKENS, description="budget of one explanation; the teacher's if left out"
    )
    temperature: float = Field(default=0.7, ge=0, le=2, allow_inf_nan=False, description="0.7 in the paper")
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1, description="0 and −1: no limit")


class Weights(Request):
    """Other coefficients of the paper's reward (section 3.2) over components that are stored already."""

    lambda_: float | None = Field(default=None, alias="lambda", ge=0, le=1e6, allow_inf_nan=False)
    ss_min_coef: float | None = Field(default=None, ge=-1e6, le=1e6, allow_inf_nan=False)
    kl_max_coef: float | None = Field(default=None, ge=-1e6, le=1e6, allow_inf_nan=False)
    format_coef: float | None = Field(
        default=None, ge=0, le=1e6, allow_inf_nan=False, description="of the format term; 1"
    )

    model_config = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


class Selection(Request):
    """Which samples become rows of the version. Only complete, scored ones are eligible."""

    mode: SelectionMode = SelectionMode.best
    k: int | None = Field(default=None, ge=1, le=MAX_SAMPLES_PER_PROBLEM, description="rows a problem, with `top_k`")
    min_reward: float | None = Field(default=None, allow_inf_nan=False, description="leave out what lies below")
    at_least: dict[Component, float] = Field(default_factory=dict, description="leave out what lies below, or has none")
    at_most: dict[Component, float] = Field(default_factory=dict, description="leave out what lies above, or has none")
    context: int | None = Field(
        default=None,
        ge=1,
        lt=MAX_TOKENS,
        description="the student's context in its tokens: leave out rows whose text is longer",
    )
    without_flags: list[Storable] = Field(
        default_factory=list, max_length=50, description="leave out samples that carry one of these, such as `leak`"
    )
    weights: Weights | None = Field(default=None, description="rank, and bound, by this reward instead")

    @field_validator("at_least", "at_most")
    @classmethod
    def _finite(cls, bounds: dict[Component, float]) -> dict[Component, float]:
        if not all(map(math.isfinite, bounds.values())):
            raise ValueError("bounds are finite numbers")
        return bounds

    @model_validator(mode="after")
    def _k_with_top_k(self) -> Self:
        if (self.mode is SelectionMode.top_k) != (self.k is not None):
            raise ValueError("k goes with mode top_k, and only with it")
        return self


class RerankRequest(Request):
    """A new version of other rows from the same samples and scores. Nothing is generated or scored."""

    selection: Selection = Field(default_factory=Selection)


class RescoreRequest(Request):
    """The samples of a finished build, scored again; the best by that score become a new version."""

    student: Storable | None = Field(
        default=None, description="name of a served student; the server's default if left out"
    )
    spec: Preset | SpecRequest = Field(default=Preset.rlt, description="the reward")
    format: Storable | None = Field(default=None, description="name of a prompt format; the first build's if left out")
    selection: Selection = Field(default_factory=Selection)
    priority: int = Field(default=0, ge=0, le=9, description="9 goes first")


class RetryRequest(Request):
    """Ask again for samples that ended so. They are replaced by what comes."""

    gen_status: list[GenStatus] = Field(
        default_factory=lambda: [GenStatus.engine_error, GenStatus.cancelled], min_length=1
    )
    score_errors: bool = Field(default=False, description="score again what could not be scored; generates nothing")
    max_tokens: int | None = Field(
        default=None, ge=1, lt=MAX_TOKENS, description="another budget, such as for truncated ones"
    )


class PriorityRequest(Request):
    priority: int = Field(ge=0, le=9, description="9 goes first")


class BuildRequest(Request):
    """Exactly one of `problems` and `source`.

    The seed of a sample is a hash of (seed, problem, sample, try), so a build with the same seed and problems asks the
    teacher the same things.
    """

    dataset: str = Field(min_length=1, max_length=MAX_NAME, pattern=NAME_PATTERN, description="made if it is new")
    kind: Literal[BuildKind.generate, BuildKind.score] = BuildKind.generate
    problems: list[BuildProblem] | None = Field(default=None, min_length=1, max_length=MAX_INLINE_PROBLEMS)
    source: Source | None = None
    n: int = Field(default=4, ge=1, le=MAX_SAMPLES_PER_PROBLEM, description="samples of each problem")
    sampling: Sampling = Field(default_factory=Sampling)
    seed: int = Field(default=0, ge=0, lt=2**63)
    format: Storable | None = Field(
        default=None, description="name of a prompt format; the servers' default if left out"
    )
    policy: Storable | None = Field(default=None, description="name of a served policy; the active one if left out")
    student: Storable | None = Field(
        default=None, description="name of a served student; the server's default if left out"
    )
    spec: Preset | SpecRequest = Field(default=Preset.rlt, description="the reward")
    selection: Selection = Field(default_factory=Selection)
    keep_tokens: bool = Field(
        default=False, description="keep token ids and log-probs: the traces can then be scored again with their own KL"
    )
    deduplicate: bool = Field(
        default=True,
        description="drop rows whose question and answer were read before; kind `score`: rank them together",
    )
    truncated: Truncated = Field(default=Truncated.keep, description="what becomes of explanations that were cut off")
    priority: int = Field(default=0, ge=0, le=9, description="9 goes first")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.problems is None) == (self.source is None):
            raise ValueError("give exactly one of problems and source")
        return self

    @model_validator(mode="after")
    def _explanations_with_score(self) -> Self:
        if self.kind is BuildKind.score and self.n != 1:
            raise ValueError("kind score takes the one explanation of each problem: n must be 1")
        for index, problem in enumerate(self.problems or []):
            if (problem.explanation is not None) != (self.kind is BuildKind.score):
                raise ValueError(f"problems/{index}: kind score, and only that, takes an explanation with each problem")
        return self
