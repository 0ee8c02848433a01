"""Types that more than one API speaks.

Requests refuse unknown fields; replies may grow, and clients ignore what they do not know.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "FieldError",
    "FormatRef",
    "GenStatus",
    "ModelRef",
    "Problem",
    "Reply",
    "Request",
    "Scope",
    "ScoreStatus",
    "Timing",
]


class Request(BaseModel):
    """Base of everything that is sent to a server."""

    model_config = ConfigDict(extra="forbid")


class Reply(BaseModel):
    """Base of everything that a server answers."""

    model_config = ConfigDict(extra="ignore")


class GenStatus(StrEnum):
    """How the generation of one explanation ended."""

    complete = "complete"
    """The closing tag was written."""
    truncated = "truncated"
    """The token budget ran out before the closing tag."""
    malformed = "malformed"
    """The model stopped by itself without the closing tag, or spelt one of its format's tags inside the explanation."""
    context_overflow = "context_overflow"
    """Prompt and budget do not fit the model's context; nothing was generated."""
    engine_error = "engine_error"
    cancelled = "cancelled"


class ScoreStatus(StrEnum):
    scored = "scored"
    score_error = "score_error"
    """No reward could be computed: `error` says why. It is never a number."""
    skipped = "skipped"


class Scope(StrEnum):
    """What a key may do; each route declares one."""

    explain = "explain"
    reward = "reward"
    build = "build"
    admin = "admin"


class ModelRef(Reply):
    """A model and the content hash of its weights."""

    name: str
    revision: str


class FormatRef(Reply):
    name: str
    version: str
    hash: str


class Timing(Reply):
    """Milliseconds of one request: waiting in the queue, in the model or engine, everything else."""

    queue_ms: float = Field(ge=0)
    engine_ms: float = Field(ge=0)
    overhead_ms: float = Field(ge=0)


class FieldError(Reply):
    """One thing wrong in a request: a JSON pointer (RFC 6901) and what is wrong there."""

    pointer: str
    detail: str


class Problem(Reply):
    """RFC 9457 problem details. `type` is stable: programs branch on it."""

    type: str
    title: str
    status: int | None = None
    detail: str | None = None
    errors: list[FieldError] | None = None
    request_id: str | None = None
