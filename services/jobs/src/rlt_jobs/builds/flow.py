"""How many requests a worker keeps under way: more while they are accepted, half after a refusal (AIMD)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

__all__ = ["Flow", "Turn"]

SHORTEST_PAUSE = 0.2  # after a refusal that names no time: long enough for a queue to move
LONGEST_PAUSE = 60.0  # a Retry-After beyond this is asked again sooner, because servers guess


class Turn:
    """One request's place. Tell it how the request went."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._began = flow.now()

    def accepted(self) -> None:
        self._flow.grow()

    def refused(self, retry_after: float | None) -> None:
        self._flow.cut(self._began, retry_after)


class Flow:
    """Args:
    start: requests under way at first.
    most: requests under way at most.
    """

    def __init__(self, start: int, most: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.limit = float(min(start, most))
        self.busy = 0
        self._most = most
        self._last_cut = -1.0
        self._open_at = 0.0
        self._closed: Exception | None = None
        self._moved = asyncio.Condition()

    async def close(self, reason: Exception) -> None:
        """Let nobody in any more: those who wait, or come, get `reason` raised. Who is in may finish."""
        self._closed = reason
        async with self._moved:
            self._moved.notify_all()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for a place, and hold it."""
        await self._enter()
        try:
            yield Turn(self)
        finally:
            self.busy -= 1
            async with self._moved:
                self._moved.notify_all()

    async def _enter(self) -> None:
        while True:
            if self._closed is not None:
                raise self._closed
            pause = self._open_at - self.now()
            if pause > 0:
                await asyncio.sleep(pause)
            elif self.busy < int(self.limit):
                self.busy += 1
                return
            else:
                async with self._moved:
                    await self._moved.wait()

    def grow(self) -> None:
        """One more place for every full round of accepted requests."""
        self.limit = min(self._most, self.limit + 1 / self.limit)

    def cut(self, began: float, retry_after: float | None) -> None:
        """Halve, once for all requests that were sent before the last cut, and pause."""
        pause = min(max(retry_after or 0.0, SHORTEST_PAUSE), LONGEST_PAUSE)
        self._open_at = max(self._open_at, self.now() + pause)
        if began > self._last_cut:
            self._last_cut = self.now()
            self.limit = max(1.0, self.limit / 2)
