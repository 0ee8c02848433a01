"""What builds, shards, selections and exports can be: the words of the wire."""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "BuildKind",
    "BuildState",
    "Component",
    "ExportFormat",
    "ExportShape",
    "SampleSort",
    "SelectionMode",
    "ShardState",
    "SourceFormat",
    "Truncated",
]


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
