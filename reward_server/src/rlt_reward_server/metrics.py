"""What the reward server counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from rlt_client.schemas.common import Timing
from rlt_client.schemas.reward import Score
from rlt_service.metrics import Metrics

__all__ = ["RewardMetrics"]

TOKENS: Final = (64, 256, 1024, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
PASSES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class RewardMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self._items = metrics.counter("reward_items", "items by status and type of error", ["status", "error"])
        self._tokens = metrics.histogram("reward_batch_tokens", "tokens of one batch", ["model"], buckets=TOKENS)
        self._passes = metrics.histogram("reward_batch_passes", "passes of one batch", ["model"], buckets=PASSES)
        self._seconds = metrics.histogram("reward_batch_seconds", "forward passes of one batch", ["model"])
        self._phases = metrics.histogram("reward_phase_seconds", "time of one request, by phase", ["phase"])
        self._queue = metrics.gauge("reward_queue_passes", "forward passes that wait")

    def watch_queue(self, waiting: Callable[[], float]) -> None:
        self._queue.set_function(waiting)

    def batch(self, model: str, passes: int, tokens: int, seconds: float) -> None:
        self._passes.labels(model).observe(passes)
        self._tokens.labels(model).observe(tokens)
        self._seconds.labels(model).observe(seconds)

    def request(self, scores: Iterable[Score], timing: Timing) -> None:
        for score in scores:
            self._items.labels(score.status.value, score.error.type if score.error else "").inc()
        for phase in ("queue", "engine", "overhead"):
            self._phases.labels(phase).observe(getattr(timing, f"{phase}_ms") / 1e3)
