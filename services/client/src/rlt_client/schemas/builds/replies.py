"""Builds and what happens to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import ConfigDict, Field

from rlt_client.schemas.builds.kinds import BuildKind, BuildState, ShardState, SourceFormat
from rlt_client.schemas.common import GenStatus, Problem, Reply, ScoreStatus

__all__ = [
    "Build",
    "BuildCounts",
    "BuildEvent",
    "BuildPage",
    "BuildReport",
    "Decile",
    "DryRun",
    "EventPage",
    "Reason",
    "SamplePage",
    "SampleRow",
    "ScorerRef",
    "Upload",
    "UploadPage",
]


class Upload(Reply):
    id: UUID
    name: str | None = None
    format: SourceFormat = SourceFormat.jsonl
    bytes: int
    sha256: str
    created_at: datetime


class UploadPage(Reply):
    items: list[Upload]
    next: str | None


class BuildCounts(Reply):
    """Samples by state, and tokens. `missing` have no outcome yet; those never sent to the scorer are `skipped`."""

    problems: int
    samples: int = Field(description="problems × n; of `rescore` those to be scored again, of `rerank` none")
    missing: int
    gen: dict[GenStatus, int]
    score: dict[ScoreStatus, int]
    prompt_tokens: int
    completion_tokens: int
    bad_rows: int = Field(description="rows of the source that were refused; each is an event with line and reason")
    duplicates: int = Field(default=0, description="rows whose question and answer were read before")
    shards: dict[ShardState, int]


class ScorerRef(Reply):
    """What computed the scores of a build or version."""

    student: str
    student_revision: str
    teacher_source: str | None = Field(description="`sent`, `hosted`, or null where KL is no part of the reward")
    teacher_revision: str | None
    format_hash: str
    dtype: str | None = None
    engine: str | None = None


class Build(Reply):
    id: int
    dataset: str
    kind: BuildKind
    state: BuildState
    n: int
    priority: int
    request: dict[str, Any] = Field(description="the request as it was resolved, without inline problems")
    counts: BuildCounts
    tokens_per_second: float | None = Field(description="generated tokens; null before the first")
    eta_seconds: float | None = Field(description="null where it cannot be told")
    scorer: ScorerRef | None
    version: int | None = Field(description="id of the version that was published")
    error: Problem | None
    note: str | None = Field(default=None, description="why work was put off, such as a teacher that is down")
    stalled_since: datetime | None = Field(default=None, description="nothing has been made since, though work waits")
    of_build: int | None = Field(default=None, description="of `rescore` and `rerank`: whose samples these are")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class BuildPage(Reply):
    items: list[Build]
    next: str | None = Field(description="pass as `cursor`; null at the end")


class BuildEvent(Reply):
    """Something that happened to a build and that its owner should be able to read, such as a refused row."""

    id: int
    at: datetime
    kind: str
    line: int | None = Field(description="line of the source, from 1")
    detail: str


class EventPage(Reply):
    items: list[BuildEvent]
    next: str | None


class SampleRow(Reply):
    """One sample. The texts are null unless asked for."""

    problem: int = Field(description="index of the problem, from 0")
    sample: int = Field(description="0 … n−1")
    try_: int = Field(alias="try", description="0, or how often it was asked again")
    gen_status: GenStatus
    gen_reason: str | None
    finish_reason: str | None
    policy_revision: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    score_status: ScoreStatus
    score_reason: str | None
    reward: float | None
    ss_mean: float | None
    ss_min: float | None
    ss_sum: float | None
    kl_mean: float | None
    kl_max: float | None
    format: float | None
    n_answer: int | None
    n_think: int | None
    student_tokens: int | None = None
    flags: list[str]
    question: str | None = None
    answer: str | None = None
    explanation: str | None = None
    completion: str | None = None

    model_config = ConfigDict(extra="ignore", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


class SamplePage(Reply):
    items: list[SampleRow]
    next: str | None


class DryRun(Reply):
    """What a build would do. Nothing was stored or asked of a model, but for lengths."""

    problems: int
    samples: int = Field(description="problems × n")
    bad_rows: int
    bad: list[BuildEvent] = Field(description="the first refused rows")
    duplicates: int
    rows_read: int = Field(description="of a long source the beginning is read, and the counts are those of it")
    whole: bool = Field(description="whether the source was read to its end")
    prompts: list[str] = Field(description="what the teacher would read, of five problems")
    prompt_tokens: int | None = Field(description="of all, estimated from those five; null if the teacher is down")
    completion_tokens: int | None = Field(description="the most that may be generated; null without a budget")
    gpu_hours: float | None = Field(description="at `tokens_per_second`; null where that is not known")
    tokens_per_second: float | None = Field(description="of this owner's last builds by the same policy")
    shards: int


class Reason(Reply):
    """Samples that ended in the same way."""

    status: str
    reason: str | None
    count: int
    examples: list[tuple[int, int]] = Field(description="(problem, sample) of the first few")


class Decile(Reply):
    """A tenth of the problems, by length of question and answer."""

    longest: int = Field(description="characters of its longest problem")
    samples: int
    truncated: int
    complete: int


class BuildReport(Reply):
    """Why samples failed, where they were cut off, how rewards spread."""

    build: int
    counts: BuildCounts
    generation: list[Reason] = Field(description="all that is not complete")
    scoring: list[Reason] = Field(description="all that could not be scored")
    flags: dict[str, int]
    share: float = Field(
        default=1.0, description="of the problems, those that flags, deciles, rewards and lengths were taken from"
    )
    deciles: list[Decile]
    rewards: dict[str, float] = Field(description="min, p05, p25, p50, p75, p95, max, mean, best_mean")
    completion_tokens: dict[str, float] = Field(description="min, p05, p25, p50, p75, p95, max, mean")
