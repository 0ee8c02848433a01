"""What a worker makes: one frozen record a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel

from rlt_client.schemas.common import GenStatus, ScoreStatus

__all__ = ["RETRIED", "Outcome", "Scored", "Texts", "compressor", "decompress"]

RETRIED = (GenStatus.engine_error, GenStatus.cancelled)
"""Outcomes that a later lease asks for again: nothing of them is worth keeping."""

LEVEL = 1  # as small as 3 for single texts in two thirds of the time; the files are compressed again as columns


class Texts(BaseModel):
    """What was written. Ids and log-probs (shape [T], nats) are kept where the build asks for it."""

    explanation: str | None = None
    completion: str | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """One score, without the scorer, which a whole build shares. Nats."""

    status: ScoreStatus
    reason: str | None = None
    reward: float | None = None
    ss_mean: float | None = None
    ss_min: float | None = None
    ss_sum: float | None = None
    kl_mean: float | None = None
    kl_max: float | None = None
    format: float | None = None
    n_answer: int | None = None
    n_think: int | None = None
    student_tokens: int | None = None
    baseline: float | None = None
    unmapped: float | None = None
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sample as it ended. `score` is None where nothing was sent to the scorer."""

    problem: int
    sample_idx: int
    try_: int
    gen_status: GenStatus
    request_key: bytes
    gen_reason: str | None = None
    finish_reason: str | None = None
    policy_revision: str | None = None
    engine: str | None = None
    """What generated it, by name and version."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flags: list[str] = field(default_factory=list)
    """What the teacher server says of the explanation."""
    texts: Texts | None = None
    score: Scored | None = None


def compressor() -> Callable[[Texts], bytes]:
    """What makes texts small. One a batch: a context is dear to make, and not to be shared by threads."""
    import zstandard

    compress = zstandard.ZstdCompressor(level=LEVEL).compress
    return lambda texts: compress(texts.__pydantic_serializer__.to_json(texts, exclude_none=True))


def decompress(blob: bytes) -> Texts:
    import zstandard

    return Texts.model_validate_json(zstandard.decompress(blob))
