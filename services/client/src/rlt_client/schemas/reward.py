"""`POST /reward`: what is sent and what comes back (arXiv 2506.08388, dense reward)."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import ConfigDict, Field, model_validator

from rlt_client.errors import ItemError
from rlt_client.schemas.common import FormatRef, ModelRef, Problem, Reply, Request, ScoreStatus, Timing

__all__ = [
    "AnswerTokens",
    "Components",
    "Counts",
    "Detail",
    "KLEstimator",
    "KLSource",
    "Mapping",
    "MappingKind",
    "Preset",
    "PresetInfo",
    "PresetList",
    "Priority",
    "ResolvedSpec",
    "RewardItem",
    "RewardRequest",
    "RewardResponse",
    "Score",
    "ScoreUsage",
    "SpecRequest",
    "TeacherTokens",
    "ThinkSegments",
    "ThinkTokens",
    "TokenScores",
    "needs_distributions",
]


class KLEstimator(StrEnum):
    """How the divergence at one think token is estimated."""

    k1 = "k1"
    """log p_teacher − log p_student of the sampled token (the authors' setting)."""
    k3 = "k3"
    """k1 − 1 + exp(−k1): never negative, lower variance."""
    exact = "exact"
    """The sum over the whole vocabulary; needs both models in the scorer."""


class KLSource(StrEnum):
    sent = "sent"
    """The teacher's log-probs came with the item."""
    hosted = "hosted"
    """A teacher served by the reward server computed them."""


class Detail(StrEnum):
    none = "none"
    components = "components"
    tokens = "tokens"


class Preset(StrEnum):
    rlt = "rlt"
    """r_ss − λ · r_kl + format, λ = 3."""
    ss_only = "ss_only"
    """r_ss + format: the paper's ablation. Alone it teaches a teacher to leak the answer."""
    kl_only = "kl_only"
    """−λ · r_kl + format: the paper's other ablation."""
    rlt_segments = "rlt_segments"
    """`rlt` for a teacher with another tokenizer: KL over the finest segments that both tokenizers share."""
    rlpr = "rlpr"
    """Mean probability of the answer tokens over that without an explanation, at least 0 (arXiv 2506.18254)."""
    verifree = "verifree"
    """Probability of the whole answer (arXiv 2505.21493)."""
    info_gain = "info_gain"
    """Geometric mean probability of the answer, minus that without an explanation (arXiv 2510.14967)."""


class MappingKind(StrEnum):
    """What becomes of a reward r, for trainers that need a bounded score."""

    affine = "affine"
    """scale · r + offset."""
    exp = "exp"
    """exp(scale · r + offset)."""
    sigmoid = "sigmoid"
    """1 / (1 + exp(−(scale · r + offset)))."""


class Priority(StrEnum):
    """Who goes first when the server is busy."""

    interactive = "interactive"
    """A person waits for it."""
    normal = "normal"


class TeacherTokens(Request):
    """What the teacher emitted after its prompt, to the end (closing tag and EOS included), with one log-prob a token.

    The log-probs must be those of the distribution that was sampled from, at the reward's teacher temperature (or 0,
    which engines report unscaled, is refused unless the reward's is 0), with nothing cut off: top_p 1, top_k 0 or −1.
    """

    token_ids: list[int] = Field(description="ids of the teacher's tokenizer for `completion`, shape [T]")
    logprobs: list[float] = Field(description="log-prob of each id, nats, shape [T]")
    temperature: float = Field(ge=0, description="sampling temperature that the log-probs were taken at")
    top_p: float = 1.0
    top_k: int = 0
    revision: str | None = Field(default=None, description="the policy's revision, echoed for the record")


class RewardItem(Request):
    """One explanation to score: one of `completion` and `explanation`, or neither where `teacher` carries ids."""

    id: str | None = Field(default=None, max_length=256, description="echoed in the score")
    question: str
    answer: str = Field(description="the ground-truth solution, without tags")
    system: str | None = Field(default=None, description="overrides the format's system message of the student")
    completion: str | None = Field(
        default=None, description="what the teacher emitted after its prompt; the format term applies"
    )
    explanation: str | None = Field(
        default=None, description="the text between the teacher's tags, as /explain returns it; no format term applies"
    )
    teacher: TeacherTokens | None = None

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.completion is not None and self.explanation is not None:
            raise ValueError("give completion or explanation, not both")
        if self.completion is None and self.explanation is None and self.teacher is None:
            raise ValueError("give completion, explanation or teacher.token_ids")
        return self


class Mapping(Request):
    """A monotone map of the reward; `components.unmapped` keeps what it was."""

    kind: MappingKind
    scale: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    offset: float = Field(default=0.0, ge=-1e6, le=1e6, allow_inf_nan=False)


class SpecRequest(Request):
    """Which reward, and its coefficients. What is left out is the preset's."""

    preset: Preset = Preset.rlt
    kl: KLEstimator | None = None
    lambda_: float | None = Field(default=None, alias="lambda", ge=0, le=1e6, allow_inf_nan=False)
    ss_min_coef: float | None = Field(default=None, allow_inf_nan=False, description="weight of min(ss); 0.01")
    kl_max_coef: float | None = Field(default=None, allow_inf_nan=False, description="weight of max(kl); 0.01")
    format_penalty: float | None = Field(default=None, le=0, allow_inf_nan=False, description="closing tag missing; −1")
    student_temperature: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    teacher_temperature: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    mapping: Mapping | None = None

    model_config = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


def needs_distributions(spec: Preset | SpecRequest | None) -> bool:
    """Whether log-probs of sampled tokens are no help, so that items are sent without: KL over the whole vocabulary."""
    return isinstance(spec, SpecRequest) and spec.kl is KLEstimator.exact


class ResolvedSpec(Reply):
    """The reward that was computed, every coefficient written out."""

    preset: Preset
    kl: KLEstimator | None
    lambda_: float | None = Field(alias="lambda")
    ss_min_coef: float | None
    kl_max_coef: float | None
    format_penalty: float
    student_temperature: float
    teacher_temperature: float | None
    mapping: Mapping | None = None

    model_config = ConfigDict(extra="ignore", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


class RewardRequest(Request):
    items: list[RewardItem] = Field(min_length=1)
    spec: Preset | SpecRequest = Preset.rlt
    format: str | None = Field(default=None, description="name of a prompt format; the server's default if left out")
    student: str | None = Field(default=None, description="name of a served student; the server's default if left out")
    teacher: str | None = Field(
        default=None, description="name of a hosted teacher; the server's default, if it has one, if left out"
    )
    teacher_revision: str | None = Field(
        default=None, description="refuse with 409 `stale_teacher` unless the hosted teacher is this revision"
    )
    detail: Detail = Detail.components
    priority: Priority = Priority.normal


class Components(Reply):
    """Parts of one reward, nats. What the preset does not use is null."""

    ss_mean: float | None = None
    ss_min: float | None = None
    ss_sum: float | None = None
    kl_mean: float | None = None
    kl_max: float | None = None
    r_ss: float | None = None
    r_kl: float | None = None
    format: float = 0.0
    baseline: float | None = Field(default=None, description="the same measure with an empty explanation")
    log_reward: float | None = Field(default=None, description="logarithm of a reward that may underflow to 0")
    unmapped: float | None = Field(default=None, description="the reward before its mapping")


class Counts(Reply):
    n_answer: int = Field(description="answer tokens scored")
    n_think: int = Field(description="think tokens scored")
    student_tokens: int = Field(description="length of the text that the student read")
    n_segments: int | None = Field(default=None, description="segments that both tokenizers share (`rlt_segments`)")


class AnswerTokens(Reply):
    """Columns of equal length, one row an answer token."""

    token_ids: list[int]
    texts: list[str]
    logprobs: list[float]


class ThinkSegments(Reply):
    """Columns of equal length, one row a segment: text between two places where a token ends in both tokenizers.

    Its tokens are rows `starts:ends` of `ThinkTokens`; log-probs are sums over the tokens of each side.
    """

    texts: list[str]
    starts: list[int]
    ends: list[int]
    student_logprobs: list[float]
    teacher_logprobs: list[float]
    kl: list[float]


class ThinkTokens(Reply):
    """Columns of equal length, one row a think token. The teacher's are null where KL is not part of the reward, and
    where the teacher's tokens are others: `segments` then holds what is compared."""

    token_ids: list[int]
    texts: list[str]
    student_logprobs: list[float]
    teacher_logprobs: list[float] | None = None
    kl: list[float] | None = None
    segments: ThinkSegments | None = Field(default=None, description="of `rlt_segments`")


class TokenScores(Reply):
    answer: AnswerTokens
    think: ThinkTokens


class Score(Reply):
    """The reward of one item, or why there is none."""

    id: str | None = None
    index: int
    status: ScoreStatus
    reward: float | None = None
    components: Components | None = None
    counts: Counts | None = None
    kl_source: KLSource | None = None
    flags: list[str] = Field(default_factory=list)
    error: Problem | None = None
    token_scores: TokenScores | None = None

    def value(self) -> float:
        """The reward. Raises `ItemError` where none could be computed: a failure is never a number."""
        if self.reward is None:
            raise ItemError(self.error or Problem(type="no_reward", title="no reward was computed"))
        return self.reward


class ScoreUsage(Reply):
    items: int
    scored: int
    student_tokens: int
    teacher_tokens: int = Field(description="tokens run through a hosted teacher")


class RewardResponse(Reply):
    items: list[Score]
    student: ModelRef
    dtype: str | None = Field(default=None, description="of the student's numbers, such as `bfloat16`")
    engine: str | None = Field(
        default=None, description="what ran the models, such as `transformers 5.17.0, torch 2.13.0`"
    )
    teacher: ModelRef | None = Field(description="the hosted teacher, where one computed log-probs")
    format: FormatRef
    spec: ResolvedSpec
    usage: ScoreUsage
    timing: Timing


class PresetInfo(Reply):
    name: Preset
    description: str
    needs_teacher: bool = Field(description="needs the teacher's log-probs: sent, or of a hosted teacher")
    spec: ResolvedSpec = Field(description="its coefficients where a request gives none")


class PresetList(Reply):
    default: Preset
    presets: list[PresetInfo]
    kl: list[KLEstimator] = Field(description="estimators that this server computes")
