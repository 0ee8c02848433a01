"""Words that options take, known before pydantic is imported; a test holds them against the schemas' own."""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "As",
    "DetailName",
    "IncompleteName",
    "KLName",
    "KeepName",
    "Kind",
    "PresetName",
    "RoleName",
    "Scoring",
    "Select",
    "Shape",
    "Sort",
    "SourceKind",
    "Status",
    "TruncatedName",
]


class PresetName(StrEnum):
    rlt = "rlt"
    ss_only = "ss_only"
    kl_only = "kl_only"
    rlt_segments = "rlt_segments"
    rlpr = "rlpr"
    verifree = "verifree"
    info_gain = "info_gain"


class KLName(StrEnum):
    k1 = "k1"
    k3 = "k3"
    exact = "exact"


class DetailName(StrEnum):
    none = "none"
    components = "components"
    tokens = "tokens"


class KeepName(StrEnum):
    all = "all"
    best = "best"


class IncompleteName(StrEnum):
    keep = "keep"
    drop = "drop"
    retry = "retry"


class TruncatedName(StrEnum):
    keep = "keep"
    drop = "drop"
    retry = "retry"


class SourceKind(StrEnum):
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


class Status(StrEnum):
    complete = "complete"
    truncated = "truncated"
    malformed = "malformed"
    context_overflow = "context_overflow"
    engine_error = "engine_error"
    cancelled = "cancelled"


class Scoring(StrEnum):
    scored = "scored"
    score_error = "score_error"
    skipped = "skipped"


class Sort(StrEnum):
    by_index = "index"
    by_reward = "reward"
    by_length = "length"


class Kind(StrEnum):
    generate = "generate"
    score = "score"


class Select(StrEnum):
    best = "best"
    top_k = "top_k"
    all = "all"


class RoleName(StrEnum):
    student = "student"
    teacher = "teacher"


class As(StrEnum):
    jsonl = "jsonl"
    parquet = "parquet"
    hf = "hf"


class Shape(StrEnum):
    messages = "messages"
    prompt_completion = "prompt_completion"
    sharegpt = "sharegpt"
    raw = "raw"
