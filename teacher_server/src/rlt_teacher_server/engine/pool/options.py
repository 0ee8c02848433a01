"""What can be told to the pool, and whom it tells what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Events", "PoolOptions", "Silent"]


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Seconds, unless a field says otherwise."""

    drain_s: float = 300.0
    """Until the requests that keep an engine from new weights have ended; then 409 `policy_busy`. Longer than most
    explanations take, shorter than a trainer would wait."""
    swap_wait_s: float = 30.0
    """That a new request waits while the only engine is given other weights; then 503. What a reload of a model of ten
    billion weights takes from a local disk."""
    load_s: float = 900.0
    """For an engine to load an adapter or full weights: a hundred gigabytes over a network."""
    prove_s: float = 120.0
    """For an engine to connect, and for one token of it: vLLM takes up to a minute to tell its settings the first time,
    and its queue may be long."""
    proof_s: float = 30.0
    """That one token, or any sample, proves an idle engine. Orchestrators ask every few seconds."""
    check_s: float = 1.0
    """Between two looks at an engine that is up: its gauges and, where it is busy, that it gets on."""
    same_s: float = 3.0
    """Between two looks at what an engine holds. None is started anew in less, so no start goes unnoticed."""
    start_s: float = 10.0
    """That the start of the pool waits for the first look at every engine. They may come later."""
    revive_s: float = 2.0
    """That a request waits for one more look at engines that are all down."""
    retry_first_s: float = 0.2
    """Until the second attempt to bring an engine back; each takes twice as long as the one before, …"""
    retry_last_s: float = 5.0
    """… up to this: a refused connection costs nothing."""
    max_waiting: int = 1024
    """Samples in the queue of one engine; where every engine has more, requests get 429. Four of the largest requests
    (256 samples): an engine's batches stay full, and nobody waits for hours."""


class Events(Protocol):
    """What the pool counts."""

    def engine_failed(self, engine: str) -> None:
        """It was up, and is out."""

    def sample_restarted(self, engine: str) -> None:
        """A sample that was in this engine is begun anew in another one."""


class Silent:
    """Counts nothing."""

    def engine_failed(self, engine: str) -> None:
        pass

    def sample_restarted(self, engine: str) -> None:
        pass
