"""Refuses new requests while every engine that could take them has a long queue."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from rlt_client.errors import Overloaded, Unavailable
from rlt_teacher_server.engine.base import Engine, Gauges

__all__ = ["Queue", "check"]

READ_S: Final = 2.0  # a gauge that takes longer is not known
STALE_S: Final = 5.0  # a gauge that old says nothing
MEASURE_S: Final = 0.5  # between two looks at the rate: whoever asks for the gauges often must not change it
MEMORY: Final = 0.8  # weight of the past in the running estimate of samples per second
SHORTEST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0  # the estimate behind a longer one would be worth nothing


class Queue:
    """The queue before one engine, as it was last read.

    Args:
        inside: samples that are in it now: those that do not run wait, wherever they do it.
    """

    def __init__(self, engine: Engine, inside: Callable[[], int]) -> None:
        self._engine = engine
        self._inside = inside
        self._inside_then = 0
        self._gauges: Gauges | None = None
        self._waiting = 0
        self._read = self._asked = self._measured = -math.inf
        self._finished = 0
        self._rate = 0.0

    @property
    def gauges(self) -> Gauges | None:
        """The engine's own; None where they are not known."""
        return self._gauges if time.monotonic() - self._read < STALE_S else None

    @property
    def waiting(self) -> int:
        """0 where it is not known. Samples that have left since it was read wait no more."""
        left = max(self._inside_then - self._inside(), 0)
        return max(self._waiting - left, 0) if self.gauges else 0

    @property
    def wanted(self) -> bool:
        """Whether a request lately wanted to know."""
        return time.monotonic() - self._asked < STALE_S

    def want(self) -> None:
        self._asked = time.monotonic()

    def forget(self) -> None:
        self._gauges = None

    def seconds_until(self, waiting: int) -> float:
        """Until no more than so many wait, by the rate at which samples were finished lately."""
        seconds = (self.waiting - waiting) / self._rate if self._rate else SHORTEST_RETRY_S
        return min(max(seconds, SHORTEST_RETRY_S), LONGEST_RETRY_S)

    async def read(self, finished: int) -> None:
        """Ask the engine. `finished`: samples that it ever finished."""
        try:
            async with asyncio.timeout(READ_S):
                self._gauges = gauges = await self._engine.gauges()
        except (Unavailable, TimeoutError):
            self._gauges = None
            return
        self._inside_then = self._inside()
        self._waiting = max(gauges.waiting, self._inside_then - gauges.running)
        self._read = now = time.monotonic()
        if now - self._measured >= MEASURE_S:
            self._measure(finished, now)

    def _measure(self, finished: int, now: float) -> None:
        if now - self._measured < STALE_S:
            rate = (finished - self._finished) / (now - self._measured)
            self._rate = MEMORY * self._rate + (1 - MEMORY) * rate if self._rate else rate
        self._finished, self._measured = finished, now


def check(queues: Sequence[Queue], most: int) -> None:
    """Raises `Overloaded` where more than `most` samples wait at every engine."""
    for queue in queues:
        queue.want()
    if all(queue.waiting > most for queue in queues):
        least = min(queue.waiting for queue in queues)
        detail = f"{least} samples wait at the engine that is the least busy"
        raise Overloaded(detail, retry_after=min(queue.seconds_until(most) for queue in queues))
