"""`POST /explain` and `POST /explain/batch`: question and answer in, explanations out."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlt_client.schemas.common import FormatRef, GenStatus, ModelRef, Problem, Reply, Request, Timing
from rlt_client.schemas.reward import Preset, Score, SpecRequest, TeacherTokens

__all__ = [
    "BatchItem",
    "BatchProblem",
    "Delta",
    "Done",
    "Dropped",
    "ExplainBatchRequest",
    "ExplainBatchResponse",
    "ExplainEvent",
    "ExplainOptions",
    "ExplainRequest",
    "ExplainResponse",
    "Explanation",
    "ExplanationFlag",
    "ExplanationUsage",
    "Failed",
    "Finished",
    "Incomplete",
    "Keep",
    "Leak",
    "PolicySummary",
    "Restarted",
    "Scored",
    "Started",
]

MAX_SAMPLES = 256
MAX_PROBLEMS = 1024
MAX_POLICIES = 8


class Keep(StrEnum):
    all = "all"
    best = "best"
    """The best explanation only, where there is one."""


class Incomplete(StrEnum):
    """What becomes of a sample that is not a complete explanation."""

    keep = "keep"
    """It is returned, with no `text`."""
    drop = "drop"
    """It is left out and counted in `dropped`."""
    retry = "retry"
    """One that was cut off by its budget is sampled once more with `retry_max_tokens`, its seed unchanged, unless it
    went round in circles; what is still incomplete then is kept."""


class ExplanationFlag(StrEnum):
    """What a reader should know of one explanation."""

    refers_to_given_solution = "refers_to_given_solution"
    """It says that the solution was given to it: `leaks` has the places."""
    repetition = "repetition"
    """It ends in a loop."""
    stray_tags = "stray_tags"
    """It spells a tag of its format inside the explanation."""
    empty = "empty"
    """There is nothing between the tags."""
    retried = "retried"
    """It was cut off by its budget once and sampled again with a larger one."""
    kl_hosted = "kl_hosted"
    """Log-probs at this sampling are of no use for the reward; the reward server's own teacher computed them."""


class ExplainOptions(Request):
    """What `/explain` and `/explain/batch` can be told beside the problem."""

    n: int = Field(default=1, ge=1, le=MAX_SAMPLES, description="explanations to sample, of each policy")
    max_tokens: int | None = Field(default=None, ge=1, description="tokens of one explanation at most")
    temperature: float = Field(default=0.7, ge=0, le=2, allow_inf_nan=False, description="0.7 in the paper")
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1, description="0 and −1: no limit")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="same seed and request, same explanations")
    format: str | None = Field(default=None, description="name of a prompt format; the server's default if left out")
    policy: str | None = Field(
        default=None, description="a policy's name, or the revision of one; the active one if left out"
    )
    policies: Annotated[list[str], Field(min_length=2, max_length=MAX_POLICIES)] | None = Field(
        default=None,
        description="instead of `policy`: n samples of each, with the same seeds, compared in `comparison`",
    )
    score: bool = Field(default=False, description="score each explanation on the reward server and rank by reward")
    spec: Preset | SpecRequest | None = Field(default=None, description="the reward to rank by; `rlt` if left out")
    min_reward: float | None = Field(
        default=None, allow_inf_nan=False, description="leave out what has a lower reward or none; needs `score`"
    )
    keep: Keep = Field(default=Keep.all, description="`best` needs `score`")
    incomplete: Incomplete = Incomplete.keep
    retry_max_tokens: int | None = Field(
        default=None, ge=1, description="budget of the second try; twice the first, cut to the context, if left out"
    )
    drop_leaks: bool = Field(default=False, description="leave out what refers to having been given the solution")
    return_tokens: bool = Field(default=False, description="add `teacher`, ready to be sent to /reward")

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.policy is not None and self.policies is not None:
            raise ValueError("policy and policies exclude each other")
        if self.policies is not None and len(set(self.policies)) < len(self.policies):
            raise ValueError("policies: one is named twice")
        if not self.score and (self.min_reward is not None or self.keep is Keep.best):
            raise ValueError("min_reward and keep: best need score: true")
        if self.retry_max_tokens is not None and self.incomplete is not Incomplete.retry:
            raise ValueError("retry_max_tokens needs incomplete: retry")
        if (
            self.retry_max_tokens is not None
            and self.max_tokens is not None
            and self.retry_max_tokens <= self.max_tokens
        ):
            raise ValueError("retry_max_tokens must be larger than max_tokens")
        return self


class ExplainRequest(ExplainOptions):
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1, description="the ground-truth solution, without tags")
    stream: bool = Field(default=False, description="server-sent events (`ExplainEvent`) instead of one reply")


class BatchProblem(Request):
    """One of many. A text that is empty or cannot be tokenised is this problem's error, not the request's."""

    id: str | None = Field(default=None, max_length=256, description="returned as it is")
    question: str
    answer: str
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="as /explain's; if left out it follows from the batch's and the place"
    )


class ExplainBatchRequest(ExplainOptions):
    problems: list[BatchProblem] = Field(min_length=1, max_length=MAX_PROBLEMS)


class ExplanationUsage(Reply):
    prompt_tokens: int
    completion_tokens: int = Field(description="every token that was generated for it, a first try's too")


class Leak(Reply):
    """A place where an explanation refers to having been given the solution."""

    pattern: str = Field(description="name of the format's pattern")
    start: int = Field(description="character of `text`; of `completion` where there is no `text`")
    end: int
    text: str


class Explanation(Reply):
    index: int = Field(description="which of the samples, 0 … n−1; of several policies, the first one's come first")
    text: str | None = Field(
        description="the text between the teacher's tags, white space included; null unless `gen_status` is complete"
    )
    completion: str | None = Field(description="everything emitted after the prompt, closing tag included")
    gen_status: GenStatus
    finish_reason: str | None = Field(description="the engine's own word: stop, length, …")
    seed: int | None = Field(default=None, description="the seed of this sample")
    policy: ModelRef | None = Field(default=None, description="the policy that wrote it; absent from older servers")
    usage: ExplanationUsage
    flags: list[ExplanationFlag | str] = Field(default_factory=list)
    leaks: list[Leak] = Field(default_factory=list)
    score: Score | None = None
    teacher: TeacherTokens | None = None
    error: Problem | None = Field(default=None, description="why nothing was generated")


class Dropped(Reply):
    """How many samples were left out, by the first reason that applied."""

    incomplete: int = 0
    leaks: int = 0
    min_reward: int = Field(default=0, description="a lower reward than asked for")
    unscored: int = Field(default=0, description="no reward, where one was needed: `unscored` of the reply says why")
    not_best: int = 0


class PolicySummary(Reply):
    """One policy of a comparison, over all of its samples, dropped ones too."""

    policy: ModelRef
    samples: int
    complete: int
    scored: int
    leaking: int = Field(description="samples that refer to having been given the solution")
    mean_reward: float | None = Field(description="over scored ones; null without any")
    best_reward: float | None = None
    best: int | None = Field(description="`index` of its best explanation")
    wins: int = Field(
        default=0, description="seeds at which every policy has a reward and its own is higher than all others"
    )


class ExplainResponse(Reply):
    explanations: list[Explanation] = Field(description="by reward, highest first, where scored; else by index")
    best: int | None = Field(description="`index` of the complete explanation with the highest reward")
    policy: ModelRef = Field(description="the policy; of several, the first")
    engine: str | None = Field(
        default=None, description="what generated, such as `vllm 0.31.0`; engines of several versions are all named"
    )
    format: FormatRef
    seed: int | None = Field(default=None, description="of the request, drawn if it named none: repeats it")
    dropped: Dropped = Dropped()
    unscored: Problem | None = Field(default=None, description="why the first explanation without a reward has none")
    comparison: list[PolicySummary] | None = Field(default=None, description="of `policies`, in their order")
    usage: ExplanationUsage
    timing: Timing


class BatchItem(Reply):
    """One problem: its result, or why there is none."""

    id: str | None = None
    index: int
    result: ExplainResponse | None = None
    error: Problem | None = None


class ExplainBatchResponse(Reply):
    items: list[BatchItem] = Field(description="in the order of the request")
    policy: ModelRef
    format: FormatRef
    succeeded: int
    failed: int
    usage: ExplanationUsage
    timing: Timing


class Started(Reply):
    """The first event: what is going to be sampled."""

    event: Literal["started"] = "started"
    samples: int
    policies: list[ModelRef]
    format: FormatRef
    seed: int
    prompt_tokens: int


class Delta(Reply):
    """What one sample has written since its last event: text of the explanation, never a tag or half a character."""

    event: Literal["delta"] = "delta"
    index: int
    text: str
    tokens: int = Field(description="tokens since its last event; some may not show in `text` yet")


class Restarted(Reply):
    """One sample begins anew: forget its deltas."""

    event: Literal["restarted"] = "restarted"
    index: int
    reason: Literal["truncated", "engine_down"]


class Finished(Reply):
    """One sample is complete, or has failed; its score comes with a later event."""

    event: Literal["finished"] = "finished"
    explanation: Explanation


class Scored(Reply):
    event: Literal["scored"] = "scored"
    index: int
    score: Score


class Done(Reply):
    """The last event: what the call would have answered without `stream`."""

    event: Literal["done"] = "done"
    response: ExplainResponse


class Failed(Reply):
    """The last event where the call failed after its first: the problem that it would have answered."""

    event: Literal["failed"] = "failed"
    problem: Problem


ExplainEvent = Annotated[
    Started | Delta | Restarted | Finished | Scored | Done | Failed,
    Field(
        discriminator="event",
        description="`started` comes first and `done` or `failed` last, each once. Each sample has its own `delta`s, "
        "then `finished`, then `scored` where a score is asked for (not of one that is going to be dropped anyway); "
        "events of different samples come in any order among each other. After `restarted` a sample begins anew. The "
        "texts of a sample's deltas since then join to the `text` of its `finished` explanation, if it is complete, "
        "and their `tokens` add up to what it sampled. The first token of a sample comes at once, more at most every "
        "50 ms, joined; a client that reads slowly gets longer deltas. Comments (lines that begin with a colon) keep "
        "silent connections open.",
    ),
]
"""Server-sent events of a streamed `/explain`: the `event:` line has the name, `data:` this object."""
