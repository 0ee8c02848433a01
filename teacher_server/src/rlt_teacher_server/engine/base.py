"""What an engine is, and what is true of every engine.

Token ids go in, token ids and their log-probs come out. The log-probs are those of the distribution that was sampled
from (after temperature, top_k and top_p); at temperature 0 the most likely token is taken, and its log-prob is the
model's own, unscaled and uncut. Stop tokens, and the tokens of stop strings, are part of the output. The same request
with the same seed gives the same tokens, whatever else runs beside it, as far as floating point goes.

An engine holds one set of full weights at a time and any number of adapters on them. Which policy is which, and who
may still use one, is not an engine's business: it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

from rlt_teacher_server.errors import Reason, item_error

__all__ = [
    "Adapter",
    "Engine",
    "FullWeights",
    "Gauges",
    "Limits",
    "Sample",
    "SampleRequest",
    "Watch",
    "check",
    "made_by",
    "overflow",
    "with_stops",
]

Watch = Callable[[Sequence[int]], None]
"""Told, in the event loop, of the tokens that were sampled since it was last told; never of none."""


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
    adapter: str | None = None
    """Name of a loaded adapter; None: the full weights alone."""


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
    engine: str | None = None
    """The `version` of the engine that it was sampled in."""

    @property
    def moments(self) -> tuple[float, float, float]:
        return self.enqueued, self.started, self.finished


@dataclass(frozen=True, slots=True)
class Limits:
    max_model_len: int
    """Tokens of prompt and completion at most."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """An engine's own gauges: sequences that it generates, and sequences in its queue."""

    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class FullWeights:
    """A whole model: its folder, and the content hash of what is in it."""

    revision: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter. `name` was never used for another version; `revision` is that of the adapter on its base."""

    name: str
    revision: str
    folder: Path


class Engine(Protocol):
    """Used as `async with`. Cancelling a call to `sample` stops its work."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def connect(self) -> None:
        """Find out what is there, and prove that it works; done again after `Unavailable`. May be started anew by then:
        whatever was loaded into it may be gone.

        Raises:
            Unavailable: it does not answer (engine_down), or not as it must (engine_misconfigured: it serves another
                model, reports raw log-probs, …).
        """

    @property
    def limits(self) -> Limits:
        """Known after `connect`."""

    @property
    def version(self) -> str | None:
        """What it calls itself, for people, for example `vllm 0.31.0`; known after `connect`."""

    async def sample(self, request: SampleRequest, watch: Watch | None = None) -> Sample:
        """Raises:
        ItemError: this request cannot be done (`errors.Reason`).
        Unavailable: the engine is down or broke off; try again.
        """

    async def alive(self) -> None:
        """Raises `Unavailable` where an engine that is busy no longer gets on."""

    async def gauges(self) -> Gauges:
        """Its gauges, now. Raises `Unavailable`."""

    async def holds(self) -> FullWeights | None:
        """The full weights in it, as far as it can tell: None if it cannot, or holds what nobody told it to."""

    async def adapters(self) -> frozenset[str]:
        """Names of the adapters that are loaded. Raises `Unavailable`."""

    async def add(self, adapter: Adapter) -> None:
        """Load an adapter; nothing happens if one of this name is loaded. Requests go on meanwhile.

        Raises:
            InvalidRequest: unusable_policy, adapters_unavailable (it was started without them).
            Unavailable
        """

    async def remove(self, name: str) -> None:
        """Unload an adapter that no request uses; nothing happens if there is none. Raises `Unavailable`."""

    async def replace(self, weights: FullWeights) -> None:
        """Put other full weights in the place of its own, and prove that nothing of the old ones is left in its caches.

        Adapters that were added go with the old weights. No request may run meanwhile: the caller sees to it. What
        this raises leaves the engine unusable until the next `replace` that succeeds.

        Raises:
            InvalidRequest: unusable_policy, weights_unavailable (it was started without what this takes).
            Unavailable: it is down, or its caches could not be proved clean.
        """


def made_by(samples: Iterable[Sample]) -> str | None:
    """The engines of these samples, one of each version; None where no sample tells."""
    versions = {sample.engine for sample in samples if sample.engine is not None}
    return ", ".join(sorted(versions)) or None


def check(request: SampleRequest, limits: Limits) -> None:
    """Raises `ItemError` (context_overflow) where prompt and budget do not fit."""
    if detail := overflow(len(request.prompt_token_ids), request.max_tokens, limits):
        raise item_error(Reason.context_overflow, detail)


def overflow(prompt: int, budget: int, limits: Limits) -> str | None:
    """In what way so many tokens do not fit; None where they do."""
    if prompt + budget <= limits.max_model_len:
        return None
    return f"{prompt} tokens of prompt and {budget} of budget, the model takes {limits.max_model_len} together"


def with_stops(request: SampleRequest, token_ids: tuple[int, ...]) -> SampleRequest:
    """The same request, ended by these tokens too."""
    stops = tuple(dict.fromkeys((*request.stop_token_ids, *token_ids)))
    return replace(request, stop_token_ids=stops)
