"""What is refused before anything is sampled."""

from __future__ import annotations

from typing import Final

from rlt_client.errors import InvalidRequest, PayloadTooLarge
from rlt_client.schemas.common import FieldError
from rlt_client.schemas.explain import ExplainOptions

__all__ = ["check_items", "check_options", "check_problem", "check_samples", "check_temperature"]

COLDEST: Final = 0.01
"""vLLM samples no colder than this, and would report the log-probs of another temperature than was asked for."""


def check_options(options: ExplainOptions, *, can_score: bool, budget: int) -> None:
    """What is wrong with a request whatever its problems are.

    Args:
        budget: tokens of an explanation where the request names none.

    Raises:
        InvalidRequest: scoring_not_configured, temperature_too_low, retry_too_small.
    """
    if options.score and not can_score:
        detail = "this server was started without a reward server (--reward-url)"
        raise InvalidRequest(detail, type="scoring_not_configured", errors=[_at("score", detail)])
    check_temperature(options.temperature)
    first = options.max_tokens or budget
    if options.retry_max_tokens is not None and options.retry_max_tokens <= first:
        detail = f"the first try has {first} tokens, the second must have more"
        raise InvalidRequest(detail, type="retry_too_small", errors=[_at("retry_max_tokens", detail)])


def check_problem(question: str, answer: str, at: str = "") -> None:
    """Raises `InvalidRequest` (empty_question, empty_answer). `at`: JSON pointer of the problem in its request."""
    for name, text in (("question", question), ("answer", answer)):
        if not text.strip():
            error = FieldError(pointer=f"{at}/{name}", detail="nothing but white space")
            raise InvalidRequest(f"the {name} is empty", type=f"empty_{name}", errors=[error])


def check_samples(count: int, most: int) -> None:
    """Raises `PayloadTooLarge` (too_many_samples)."""
    if count > most:
        raise PayloadTooLarge(f"{count} samples, at most {most} in one request", type="too_many_samples")


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
