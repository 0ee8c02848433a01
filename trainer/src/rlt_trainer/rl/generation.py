"""What TRL's trainer takes for its vLLM: weights go out once a step, completions come in through a rollout function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from trl.trainer import grpo_trainer

__all__ = ["Generation", "in_place_of_vllm"]

_REPLACED = "VLLMGeneration"
"""The one private name of TRL 1.16 that is touched; tests/trainer holds it to what is written here."""


class _Server:
    def get_server_info(self) -> dict[str, Any]:
        """What TRL asks before the first step: whether log-probs are those of the distribution sampled from."""
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}


class Generation:
    """Stands where TRL would reach into vLLM by itself."""

    vllm_client = _Server()

    def __init__(self, publish: Callable[[], None]) -> None:
        self._publish = publish

    def sync_weights(self) -> None:
        """Called by every process before the completions of a step."""
        self._publish()


@contextmanager
def in_place_of_vllm(publish: Callable[[], None]) -> Iterator[None]:
    """Trainers made meanwhile publish their weights by `publish`."""
    with patch.object(grpo_trainer, _REPLACED, lambda **_: Generation(publish)):
        yield
