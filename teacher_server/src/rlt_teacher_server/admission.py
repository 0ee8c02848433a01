"""How many samples may be inside the server at once. What does not fit is refused at once instead of waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rlt_client.errors import Overloaded

__all__ = ["Admission"]

SHORTEST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0  # the estimate behind a longer one would be worth nothing
RATE_MEMORY: Final = 0.8  # weight of the past in the running estimate of samples per second


class Admission:
    """Args:
    capacity: samples being made or waiting at most.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._inside = 0
        self._rate = 0.0

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def inside(self) -> int:
        return self._inside

    @contextmanager
    def admit(self, samples: int) -> Iterator[None]:
        """Room for all of one request's samples, or `Overloaded` with the time until there may be."""
        if self._inside + samples > self._capacity:
            raise Overloaded(
                f"{self._inside} samples are being made or waiting", retry_after=self._retry_after(samples)
            )
        self._inside += samples
        began = time.perf_counter()
        try:
            yield
            self._measure(samples, time.perf_counter() - began)
        finally:
            self._inside -= samples

    def _measure(self, samples: int, seconds: float) -> None:
        """What was inside together shared the engine: the rate is that of all of it."""
        rate = max(samples, self._inside) / max(seconds, 1e-3)
        self._rate = rate if not self._rate else RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * rate

    def _retry_after(self, samples: int) -> float:
        too_many = self._inside + samples - self._capacity
        seconds = too_many / self._rate if self._rate else SHORTEST_RETRY_S
        return min(max(seconds, SHORTEST_RETRY_S), LONGEST_RETRY_S)
