"""What a vLLM server says of itself at `/metrics`. Pure.

Source: `vllm/v1/metrics/loggers.py` of vLLM 0.31, and the process metrics of prometheus_client.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["Metrics", "Progress", "read_metrics"]

LABELS: Final = rb"(?:\{[^\n]*\})? (\S+)$"
RUNNING: Final = re.compile(rb"^vllm:num_requests_running" + LABELS, re.MULTILINE)
WAITING: Final = re.compile(rb"^vllm:num_requests_waiting" + LABELS, re.MULTILINE)
STEPS: Final = re.compile(rb"^vllm:iteration_tokens_total_count" + LABELS, re.MULTILINE)
BORN: Final = re.compile(rb"^process_start_time_seconds" + LABELS, re.MULTILINE)
LAPSE_S: Final = 30.0  # whoever watches asks more often; after a longer pause the watch begins anew


@dataclass(frozen=True, slots=True)
class Metrics:
    running: int
    waiting: int
    steps: int | None
    """Forward passes since it was started, if it counts them."""
    born: float | None
    """When it was started, seconds since 1970; None where several processes share its port."""


class Progress:
    """Whether a server that has requests gets on, as far as it is asked."""

    def __init__(self) -> None:
        self._steps: int | None = None
        self._asked = self._moved = 0.0

    def stalled(self, read: Metrics, now: float) -> float:
        """Seconds since it last did a forward pass, or had nothing to do; 0 where it was not watched meanwhile."""
        unwatched = now - self._asked > LAPSE_S
        if unwatched or not read.running or read.steps is None or read.steps != self._steps:
            self._steps, self._moved = read.steps, now
        self._asked = now
        return now - self._moved


def read_metrics(text: bytes) -> Metrics | None:
    """None where gauges are missing or no numbers. Those of data-parallel engines behind one address are added up."""
    try:
        running, waiting, steps = (_sum(metric, text) for metric in (RUNNING, WAITING, STEPS))
        born = BORN.search(text)
        if running is None or waiting is None:
            return None
        return Metrics(running, waiting, steps, float(born[1]) if born else None)
    except (ValueError, OverflowError):
        return None


def _sum(metric: re.Pattern[bytes], text: bytes) -> int | None:
    values = metric.findall(text)
    return int(sum(map(float, values))) if values else None
