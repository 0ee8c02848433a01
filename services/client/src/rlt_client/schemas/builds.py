"""`/builds` and its family: a list of problems in, an immutable version of a dataset out."""

from __future__ import annotations

import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from rlt_client.schemas.common import GenStatus, Problem, Reply, Request, ScoreStatus
from rlt_client.schemas.reward import Preset, SpecRequest

__all__ = [
    "Build",
    "BuildCounts",
    "BuildEvent",
    "BuildKind",
    "BuildPage",
    "BuildProblem",
    "BuildReport",
    "BuildRequest",
    "BuildState",
    "Component",
    "Dataset",
    "DatasetPage",
    "Decile",
    "DryRun",
    "EventPage",
    "ExportFormat",
    "ExportShape",
    "FileRef",
    "HubSource",
    "PriorityRequest",
    "Reason",
    "RerankRequest",
    "RescoreRequest",
    "RetryRequest",
    "SamplePage",
    "SampleRow",
    "SampleSort",
    "Sampling",
    "ScorerRef",
    "Selection",
    "SelectionMode",
    "ShardState",
    "Source",
    "SourceFormat",
    "Truncated",
    "Upload",
    "UploadPage",
    "Version",
    "VersionPage",
    "Weights",
    "storable",
]

MAX_INLINE_PROBLEMS = 1_000
MAX_SAMPLES_PER_PROBLEM = 1_024
MAX_NAME = 100
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class BuildKind(StrEnum):
    generate = "generate"
    """Explanations are generated, then scored."""
    score = "score"
    """The problems carry an explanation each; they are scored only."""
    rescore = "rescore"
    """The samples of another build are scored again, by another student or with another reward."""
    rerank = "rerank"
    """Nothing is computed: another selection from the scores that a version was made of."""


class BuildState(StrEnum):
    importing = "importing"
    """The source is being read."""
    running = "running"
    paused = "paused"
    finishing = "finishing"
    """Every sample has its outcome; the version is being written."""
    done = "done"
    failed = "failed"
    """`error` says why; what was made is kept, and `resume` tries again."""
    cancelled = "cancelled"


class ShardState(StrEnum):
    ready = "ready"
    running = "running"
    done = "done"
    dead = "dead"
    """Given up after several leases in a row that brought nothing."""


class SelectionMode(StrEnum):
    best = "best"
    """The highest reward of each problem."""
    top_k = "top_k"
    """The k highest of each problem."""
    all = "all"


class SampleSort(StrEnum):
    by_index = "index"
    """By problem, then sample."""
    by_reward = "reward"
    """By reward; samples without one are left out."""
    by_length = "length"
    """By tokens generated."""


class SourceFormat(StrEnum):
    jsonl = "jsonl"
    csv = "csv"
    """With a header line."""
    parquet = "parquet"


class Component(StrEnum):
    """What a selection may set bounds to: parts of a reward in nats, lengths in tokens."""

    reward = "reward"
    ss_mean = "ss_mean"
    ss_min = "ss_min"
    ss_sum = "ss_sum"
    kl_mean = "kl_mean"
    kl_max = "kl_max"
    format_ = "format"
    completion_tokens = "completion_tokens"
    n_answer = "n_answer"
    n_think = "n_think"
    student_tokens = "student_tokens"


class Truncated(StrEnum):
    """What becomes of explanations that hit their token budget. They are never rows of a version."""

    keep = "keep"
    """Stored with their text."""
    drop = "drop"
    """Stored without it."""
    retry = "retry"
    """Asked for once more with twice the budget, then kept."""


class ExportFormat(StrEnum):
    jsonl = "jsonl"
    parquet = "parquet"
    hf = "hf"
    """A folder that `datasets.load_dataset(folder)` reads, as a zip."""


class ExportShape(StrEnum):
    messages = "messages"
    """Chat messages that train a student: system, user = question, assistant = think text and solution."""
    prompt_completion = "prompt_completion"
    """The same chat, cut before what the assistant says: only that is trained on."""
    sharegpt = "sharegpt"
    """`conversations` of `from` (system, human, gpt) and `value`."""
    raw = "raw"
    """Every column: texts, reward, its components, provenance."""


def storable(text: str) -> str:
    """`text`, if Postgres and UTF-8 can hold it. Raises `ValueError` for a NUL character or half a surrogate pair."""
    if "\0" in text:
        raise ValueError("holds a NUL character, which cannot be stored")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is not Unicode text") from None
    return text


Storable = Annotated[str, AfterValidator(storable)]
MAX_TOKENS = 2**31
"""Below it lie all lengths, and what a column of 32 bits holds."""


def storable_json(value: Any) -> None:
    """Raise `ValueError` for a text or number in `value` that cannot be stored, wherever it stands."""
    if isinstance(value, str):
        storable(value)
    elif isinstance(value, float) and not math.isfinite(value):  # 1e999 is JSON and no number of any kind
        raise ValueError("holds a number that is not finite")
    elif isinstance(value, dict):
        for key, child in value.items():
            storable(key)
            storable_json(child)
    elif isinstance(value, list):
        for child in value:
            storable_json(child)


class BuildProblem(Request):
    """One question with its ground-truth answer."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1, description="the ground-truth solution, without tags")
    system: str | None = Field(default=None, description="overrides the format's system message of the student")
    explanation: str | None = Field(default=None, description="kind `score`: the text to score")
    meta: dict[str, Any] | None = Field(default=None, description="kept with the problem, not read")

    @field_validator("question", "answer", "system", "explanation")
    @classmethod
    def _storable(cls, text: str | None) -> str | None:
        return None if text is None else storable(text)

    @field_validator("meta")
    @classmethod
    def _storable_meta(cls, meta: dict[str, Any] | None) -> dict[str, Any] | None:
        storable_json(meta)
        return meta

    @field_validator("question", "answer")
    @classmethod
    def _not_blank(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("holds white space only")
        return text


class HubSource(Request):
    """A data set of the Hugging Face hub, or a folder that `datasets.load_dataset` reads."""

    name: str = Field(min_length=1, max_length=500, description="such as `open-thoughts/OpenThoughts-114k`")
    config: Storable | None = Field(default=None, max_length=200)
    split: Storable = Field(default="train", min_length=1, max_length=200)
    revision: Storable | None = Field(
        default=None, max_length=200, description="branch, tag or commit; the newest without"
    )


class Source(Request):
    """Where problems are read from: exactly one of `upload`, `path` and `hub`. A row has `question` and `answer`.

    `system` and `explanation` are read where present; all other fields are kept as the problem's `meta`.
    """

    upload: UUID | None = Field(default=None, description="id of `POST /uploads`")
    path: str | None = Field(
        default=None, min_length=1, max_length=4_096, description="a file inside the folders that the service may read"
    )
    hub: HubSource | None = None
    format: SourceFormat | None = Field(default=None, description="of upload or path; told by name or content without")
    columns: dict[str, Storable] = Field(
        default_factory=dict, description="names in the file by name here: {'question': 'prompt', 'answer': 'solution'}"
    )
    limit: int | None = Field(default=None, ge=1, lt=2**63, description="read so many rows at most")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.upload, self.path, self.hub)) != 1:
            raise ValueError("give exactly one of upload, path and hub")
        if self.hub is not None and self.format is not None:
            raise ValueError("format goes with upload or path")
        return self

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        unknown = columns.keys() - {"question", "answer", "system", "explanation"}
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: question, answer, system, explanation")
        return columns


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


class Dataset(Reply):
    name: str
    created_at: datetime
    builds: int
    versions: int
    latest_version: int | None = Field(description="id of the newest version")


class DatasetPage(Reply):
    items: list[Dataset]
    next: str | None


class FileRef(Reply):
    uri: str
    rows: int
    bytes: int
    sha256: str


class Version(Reply):
    """An immutable list of rows. The manifest holds (build, problem, sample_idx, rank) of each, and its place."""

    id: int
    dataset: str
    number: int = Field(description="1, 2, … within the dataset")
    parent: int | None
    build: int | None
    rows: int
    selection: Selection
    scorer: ScorerRef | None
    manifest: FileRef
    files: list[FileRef]
    counts: dict[str, int]
    lineage: dict[str, Any] = Field(
        description="policy revisions, format, sampling, seed, reward spec and versions of the code"
    )
    created_at: datetime


class VersionPage(Reply):
    items: list[Version]
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
