"""What is refused before anything is sampled."""

from __future__ import annotations

from typing import Final

from rlt_client.errors import InvalidRequest, PayloadTooLarge
from rlt_client.schemas.common import FieldError
from rlt_client.schemas.explain import ExplainRequest

__all__ = ["check_explain", "check_items", "check_temperature"]

COLDEST: Final = 0.01
"""vLLM samples no colder than this, and would report the log-probs of another temperature than was asked for."""


def check_explain(request: ExplainRequest, *, can_score: bool) -> None:
    """Raises `InvalidRequest` (empty_question, empty_answer, scoring_not_configured, temperature_too_low)."""
    for name in ("question", "answer"):
        if not getattr(request, name).strip():
            detail = "nothing but white space"
            raise InvalidRequest(f"the {name} is empty", type=f"empty_{name}", errors=[_at(name, detail)])
    if request.score and not can_score:
        detail = "this server was started without a reward server (--reward-url)"
        raise InvalidRequest(detail, type="scoring_not_configured", errors=[_at("score", detail)])
    check_temperature(request.temperature)


def check_temperature(temperature: float) -> None:
    """Raises `InvalidRequest` (temperature_too_low) for what engines do not really sample at."""
    if 0 < temperature < COLDEST:
        detail = f"must be 0 or at least {COLDEST}"
        raise InvalidRequest(detail, type="temperature_too_low", errors=[_at("temperature", detail)])


def check_items(count: int, most: int) -> None:
    """Raises `PayloadTooLarge` (too_many_items)."""
    if count > most:
        raise PayloadTooLarge(f"{count} items, at most {most} in one request", type="too_many_items")


def _at(name: str, detail: str) -> FieldError:
    return FieldError(pointer=f"/{name}", detail=detail)
