"""How many requests a worker keeps under way (AIMD): twice as many each round until one is refused, then one more."""

from __future__ import annotations

import asyncio
import time
from collections import deque
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
    """Places are given in the order of asking: of two shards, the second gets what the first leaves.

    Args:
        start: requests under way at first.
        most: requests under way at most.
    """

    def __init__(self, start: int, most: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.limit = float(min(start, most))
        self.busy = 0
        self.accepted_at = now()
        """When a request was last accepted."""
        self._start = self.limit
        self._most = most
        self._cut_before = False
        self._last_cut = -1.0
        self._open_at = 0.0
        self._closed: Exception | None = None
        self._queue: deque[asyncio.Future[None]] = deque()
        self._idlers: list[asyncio.Future[None]] = []

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def close(self, reason: Exception) -> None:
        """Let nobody in any more: those who wait, or come, get `reason` raised. Who is in may finish."""
        self._closed = reason
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.done():
                waiting.set_exception(reason)
        self._move()

    def open(self, *, careful: bool = False) -> None:
        """Let people in again as at the start, or, `careful`, one at first."""
        self._closed = None
        self.limit, self._cut_before, self._open_at = 1.0 if careful else self._start, False, 0.0
        self._move()

    async def idle(self) -> None:
        """Wait until there is a place that nobody waits for."""
        while not self._free():
            idler = asyncio.get_running_loop().create_future()
            self._idlers.append(idler)
            try:
                await idler
            finally:
                if idler in self._idlers:
                    self._idlers.remove(idler)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for a place, and hold it."""
        await self._enter()
        try:
            yield Turn(self)
        finally:
            self.busy -= 1
            self._move()

    async def _enter(self) -> None:
        if self._closed is not None:
            raise self._closed
        if self._free():
            self.busy += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._move()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:  # a place that is given up unused
                self.busy -= 1
                self._move()
            raise

    def _free(self) -> bool:
        return not self._queue and self.busy < int(self.limit) and self.now() >= self._open_at

    def _move(self) -> None:
        """Hand free places to those who wait, in order; call again when a pause is over."""
        pause = self._open_at - self.now()
        if pause > 0:
            if self._queue or self._idlers:
                asyncio.get_running_loop().call_later(pause, self._move)
            return
        while self._queue and (self._queue[0].done() or self.busy < int(self.limit)):
            place = self._queue.popleft()
            if not place.done():
                self.busy += 1
                place.set_result(None)
        if self._free():
            for idler in self._idlers:
                if not idler.done():
                    idler.set_result(None)
            self._idlers.clear()

    def refused_within(self, seconds: float) -> bool:
        """Whether the last word of the server was a refusal, of a request sent within `seconds`."""
        return self._last_cut > max(self.accepted_at, self.now() - seconds)

    def grow(self) -> None:
        """Before the first refusal one more place for each accepted request, later one for every full round."""
        self.accepted_at = self.now()
        step = 1 / self.limit if self._cut_before else 1.0
        self.limit = min(self._most, self.limit + step)
        self._move()

    def cut(self, began: float, retry_after: float | None) -> None:
        """Halve, once for all requests that were sent before the last cut, and pause."""
        pause = min(max(retry_after or 0.0, SHORTEST_PAUSE), LONGEST_PAUSE)
        self._open_at = max(self._open_at, self.now() + pause)
        if began > self._last_cut:
            self._last_cut = self.now()
            self._cut_before = True
            self.limit = max(1.0, self.limit / 2)
