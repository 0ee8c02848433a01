from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Ask", "Completion", "Engine", "Failed", "Published"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One completion that is wanted. `prompt_ids` has shape [P]."""

    prompt_ids: Sequence[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled, stop tokens included, shape [T] each."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    """Of the distribution that was sampled from, nats."""
    finish_reason: str | None
    revision: str
    """Of the weights that sampled it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is no completion: of this prompt, not of the engine."""

    type: str
    detail: str


@dataclass(frozen=True, slots=True)
class Published:
    """Weights that an engine was given. `revision` is a content hash, as completions carry it."""

    folder: Path
    lora: bool
    revision: str


class Engine(Protocol):
    """Waits for a service that does not answer, and asks again, until its patience is over."""

    async def generate(self, asks: Sequence[Ask], weights: Published) -> Sequence[Completion | Failed]:
        """One completion each, in their order. An engine that has forgotten the weights is given them again.

        Raises:
            RLTError: the engine refuses such requests, or its patience is over.
        """
        ...

    async def publish(self, folder: Path, *, lora: bool) -> Published:
        """Load the weights of a folder and sample with them from now on.

        Raises:
            RLTError: the engine refuses them, or its patience is over.
        """
        ...

    async def aclose(self) -> None: ...
