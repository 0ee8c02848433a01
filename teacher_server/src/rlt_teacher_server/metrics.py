"""What the teacher server counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from rlt_client.schemas.common import ModelRef, Timing
from rlt_client.schemas.explain import Dropped, Explanation, ExplanationFlag
from rlt_client.schemas.policies import EngineInfo
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
        self._flags = metrics.counter("teacher_flags", "flags of explanations", ["flag"])
        self._leaks = metrics.counter("teacher_leaks", "places that refer to a given solution, by pattern", ["pattern"])
        self._retries = metrics.counter(
            "teacher_retries", "second tries of truncated samples, by outcome", ["gen_status"]
        )
        self._dropped = metrics.counter("teacher_dropped", "explanations left out of replies, by reason", ["reason"])
        self._first_token = metrics.histogram("teacher_first_token_seconds", "time to a stream's first token")
        self._streams = metrics.gauge("teacher_streams", "streamed replies under way")
        self._inside = metrics.gauge("teacher_samples_inside", "samples being made or waiting")
        self._engines = {
            "up": metrics.gauge("teacher_engine_up", "1: the engine is used", ["engine"]),
            "samples": metrics.gauge("teacher_engine_samples", "samples of this server in the engine", ["engine"]),
            "running": metrics.gauge("teacher_engine_running", "sequences it generates, by its own gauge", ["engine"]),
            "waiting": metrics.gauge("teacher_engine_waiting", "sequences in its queue, by its own gauge", ["engine"]),
        }
        self._engine_failures = metrics.counter("teacher_engine_failures", "times an engine went out", ["engine"])
        self._restarted = metrics.counter(
            "teacher_samples_restarted", "samples begun anew elsewhere, by the engine that died", ["engine"]
        )
        self._policy_active = metrics.gauge("teacher_policy_active", "1: the active policy", ["name", "revision"])
        self._policy_changes = metrics.counter("teacher_policy_changes", "changes of policies that succeeded", ["kind"])
        self._policy_requests = metrics.counter("teacher_policy_requests", "requests by the policy's name", ["name"])

    def watch(self, inside: Callable[[], float]) -> None:
        self._inside.set_function(inside)

    def watch_engines(self, figures: Callable[[], Sequence[EngineInfo]]) -> None:
        """`figures`: of the same engines whenever it is called, in one order; an unknown gauge is NaN."""
        for place, engine in enumerate(figures()):
            for name, gauge in self._engines.items():
                gauge.labels(engine.name).set_function(partial(_figure, figures, place, name))

    def explanation(self, explanation: Explanation) -> None:
        self._samples.labels(explanation.gen_status.value).inc()
        self._tokens.observe(explanation.usage.completion_tokens)
        for flag in explanation.flags:
            self._flags.labels(str(flag)).inc()
        for leak in explanation.leaks:
            self._leaks.labels(leak.pattern).inc()
        if ExplanationFlag.retried in explanation.flags:
            self._retries.labels(explanation.gen_status.value).inc()

    def dropped(self, dropped: Dropped) -> None:
        for reason, count in dropped:
            self._dropped.labels(reason).inc(count)

    def first_token(self, seconds: float) -> None:
        """Of a streamed request, since it came."""
        self._first_token.observe(seconds)

    def streaming(self) -> AbstractContextManager[object]:
        """While a streamed reply is under way."""
        return self._streams.track_inprogress()

    def engine_failed(self, engine: str) -> None:
        self._engine_failures.labels(engine).inc()

    def sample_restarted(self, engine: str) -> None:
        self._restarted.labels(engine).inc()

    def generated(self, tokens: int, error: str | None = None) -> None:
        self._generated.labels(error or "").inc()
        self._tokens.observe(tokens)

    def score(self, status: str) -> None:
        self._scores.labels(status).inc()

    def policy_requested(self, policy: ModelRef) -> None:
        self._policy_requests.labels(policy.name).inc()

    def policy_active(self, policy: ModelRef) -> None:
        self._policy_active.clear()  # of a trainer's thousands of revisions one is of interest
        self._policy_active.labels(policy.name, policy.revision).set(1)

    def policy_changed(self, kind: str) -> None:
        self._policy_changes.labels(kind).inc()

    def request(self, timing: Timing) -> None:
        for phase in ("queue", "engine", "overhead"):
            self._phases.labels(phase).observe(getattr(timing, f"{phase}_ms") / 1e3)


def _figure(figures: Callable[[], Sequence[EngineInfo]], place: int, name: str) -> float:
    value = getattr(figures()[place], name)
    return math.nan if value is None else float(value)
