"""`rlt-trainer evaluate`: how often a student is right."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, PositiveInt, model_validator

from rlt_trainer.config.base import Section, Stage
from rlt_trainer.config.sections import Data, Model, Prompts

__all__ = ["CompletionServer", "EvaluateConfig", "Match"]


class Match(StrEnum):
    """When an answer counts as right."""

    exact = "exact"
    """The same text, white space aside."""
    math = "math"
    """Equal as mathematics (math-verify)."""
    parts = "parts"
    """The share of white-space separated words that are right, in their places."""
    countdown = "countdown"
    """An expression that uses each number once and gives the target. The right answer is such an expression, or the
    numbers and the target: `44 19 35 = 98`."""


class CompletionServer(Section):
    """A server that speaks OpenAI's API and takes prompts as token ids, as vLLM does."""

    url: str = Field(description="of the server, without /v1")
    model: str | None = Field(None, description="name that it serves the model by; else `model.name`, or its only one")
    key_env: str | None = Field(None, description="environment variable that holds the key")
    concurrency: int = Field(256, ge=1, description="samples under way at once")
    patience_s: float = Field(
        3600, gt=0, description="how long a sample is waited for, and a server that does not answer with it"
    )


class EvaluateConfig(Stage):
    """pass@1 and pass@k of a student on problems of a file, or on public benchmarks by name."""

    model: Model
    data: Data | None = Field(None, description="rows of question and answer")
    benchmarks: list[str] = Field(
        [],
        description="tasks of lm-eval-harness, such as aime24, minerva_math500, gpqa_diamond_cot_zeroshot; each asks "
        "for one sample of a problem. Countdown is none of them: `data` with match = countdown",
    )
    tasks: Path | None = Field(None, description="folder of task files (*.yaml) of your own, for `benchmarks`")
    texts: Prompts = Prompts()
    match: Match = Field(Match.math, description="when an answer counts as right")
    samples: int = Field(1, ge=1, description="of each problem")
    ks: list[PositiveInt] = Field([1], min_length=1, description="k of pass@k, each at most `samples`")
    temperature: float = Field(0.0, ge=0, le=2, description="0: greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the likeliest tokens that sum to it")
    max_new_tokens: int = Field(8192, ge=1, description="of a sample, where the model's context has room for them")
    batch_size: int = Field(64, ge=1, description="sequences that are generated together, in-process")
    engine: CompletionServer | None = Field(None, description="server that has the model; without it, in-process")
    cpu: bool = Field(False, description="generate on the CPU, though there is a GPU")

    @model_validator(mode="after")
    def _has_something_to_do(self) -> Self:
        if self.data is None and not self.benchmarks:
            raise ValueError("want `data` or `benchmarks`")
        if self.tasks is not None and not self.benchmarks:
            raise ValueError("`tasks` are files for `benchmarks`, which name what is run")
        if max(self.ks) > self.samples:
            raise ValueError(f"pass@{max(self.ks)} needs that many samples of each problem, not {self.samples}")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several greedy samples are equal: want a temperature above 0")
        return self
