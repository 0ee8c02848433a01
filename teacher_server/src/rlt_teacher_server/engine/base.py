"""What an engine is, and what is true of every engine.

Token ids go in, token ids and their log-probs come out. The log-probs are those of the distribution that was sampled
from (after temperature, top_k and top_p); at temperature 0 the most likely token is taken, and its log-prob is the
model's own, unscaled and uncut. Stop tokens, and the tokens of stop strings, are part of the output. The same request
with the same seed gives the same tokens, whatever else runs beside it, as far as floating point goes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

from rlt_teacher_server.errors import Reason, item_error

__all__ = ["Engine", "Limits", "Sample", "SampleRequest", "check", "with_stops"]


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One sample. `top_k` 0: no limit; `seed`: 0 … 2⁶³ − 1."""

    prompt_token_ids: list[int]
    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """What was sampled, shapes [T], and three moments of its life, seconds of `time.perf_counter`."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    """`stop`: a stop token or string; `length`: the budget."""
    enqueued: float
    started: float
    finished: float

    @property
    def moments(self) -> tuple[float, float, float]:
        return self.enqueued, self.started, self.finished


@dataclass(frozen=True, slots=True)
class Limits:
    max_model_len: int
    """Tokens of prompt and completion at most."""


class Engine(Protocol):
    """Used as `async with`. Cancelling a call to `sample` stops its work."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def limits(self) -> Limits:
        """Raises `Unavailable` while it cannot be known."""

    async def sample(self, request: SampleRequest) -> Sample:
        """Raises:
        ItemError: this request cannot be done (`errors.Reason`).
        Unavailable: the engine is down or broke off; try again.
        """

    async def alive(self) -> None:
        """Raises `Unavailable` where an engine that is busy no longer gets on."""


def check(request: SampleRequest, limits: Limits) -> None:
    """Raises `ItemError` (context_overflow) where prompt and budget do not fit."""
    prompt, budget = len(request.prompt_token_ids), request.max_tokens
    if prompt + budget > limits.max_model_len:
        detail = f"{prompt} tokens of prompt and {budget} of budget, the model takes {limits.max_model_len} together"
        raise item_error(Reason.context_overflow, detail)


def with_stops(request: SampleRequest, token_ids: tuple[int, ...]) -> SampleRequest:
    """The same request, ended by these tokens too."""
    stops = tuple(dict.fromkeys((*request.stop_token_ids, *token_ids)))
    return replace(request, stop_token_ids=stops)
