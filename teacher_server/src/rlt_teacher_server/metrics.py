"""What the teacher server counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rlt_client.schemas.common import GenStatus, Timing
from rlt_service.metrics import Metrics

__all__ = ["TeacherMetrics"]

TOKENS: Final = (16, 64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)


class TeacherMetrics:
    def __init__(self, metrics: Metrics) -> None:
        self._samples = metrics.counter("teacher_samples", "samples of /explain by outcome", ["gen_status"])
        self._generated = metrics.counter("teacher_generated", "items of /generate by type of error", ["error"])
        self._tokens = metrics.histogram("teacher_sample_tokens", "tokens of one sample", buckets=TOKENS)
        self._scores = metrics.counter("teacher_scores", "scores asked for, by status", ["status"])
        self._phases = metrics.histogram("teacher_phase_seconds", "time of one request, by phase", ["phase"])
        self._inside = metrics.gauge("teacher_samples_inside", "samples being made or waiting")

    def watch(self, inside: Callable[[], float]) -> None:
        self._inside.set_function(inside)

    def sample(self, status: GenStatus, tokens: int) -> None:
        self._samples.labels(status.value).inc()
        self._tokens.observe(tokens)

    def generated(self, tokens: int, error: str | None = None) -> None:
        self._generated.labels(error or "").inc()
        self._tokens.observe(tokens)

    def score(self, status: str) -> None:
        self._scores.labels(status).inc()

    def request(self, timing: Timing) -> None:
        for phase in ("queue", "engine", "overhead"):
            self._phases.labels(phase).observe(getattr(timing, f"{phase}_ms") / 1e3)
