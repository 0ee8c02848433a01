"""What can go wrong with one sample. The type names are stable: programs branch on them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from rlt_client.errors import ItemError
from rlt_client.schemas.common import Problem

__all__ = ["Reason", "item_error"]


class Reason(StrEnum):
    context_overflow = "context_overflow"
    unknown_token = "unknown_token"  # noqa: S105 a word, not a secret
    engine_refused = "engine_refused"
    engine_failed = "engine_failed"
    non_finite_logits = "non_finite_logits"
    out_of_memory = "out_of_memory"


TITLES: Final = {
    Reason.context_overflow: "Prompt and budget do not fit the model's context",
    Reason.unknown_token: "A token id is outside the model's vocabulary",
    Reason.engine_refused: "The engine refused the request",
    Reason.engine_failed: "The engine gave no usable answer",
    Reason.non_finite_logits: "The model's log-probs are not finite",
    Reason.out_of_memory: "The device ran out of memory",
}


def item_error(reason: Reason, detail: str | None = None) -> ItemError:
    """The error of one sample, with its stable type."""
    return ItemError(Problem(type=reason.value, title=TITLES[reason], detail=detail))
