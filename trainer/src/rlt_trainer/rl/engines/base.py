from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Completion", "Engine", "Failed"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled, stop tokens included, shape [T] each."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    """Of the distribution that was sampled from, nats."""
    finish_reason: str | None
    revision: str
    """Content hash of the weights that sampled it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why there is no completion: of this prompt, not of the engine."""

    type: str
    detail: str


class Engine(Protocol):
    """Waits for a service that does not answer, and asks again, until its patience is over."""

    async def generate(self, prompt_ids: Sequence[int], *, seed: int) -> Completion | Failed:
        """One completion.

        Raises:
            RLTError: the engine refuses such requests, or its patience is over.
        """
        ...

    async def publish(self, folder: Path, *, lora: bool) -> str:
        """Load the weights of a folder and sample with them from now on.

        Returns:
            Their revision, as completions carry it.

        Raises:
            RLTError: the engine refuses them, or its patience is over.
        """
        ...

    async def aclose(self) -> None: ...
