"""One run of a coroutine for all who wait for its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["Shared"]

T = TypeVar("T")


class Shared(Generic[T]):
    """Whoever asks while it runs waits for the same result; whoever asks thereafter starts it anew."""

    def __init__(self, run: Callable[[], Coroutine[Any, Any, T]], name: str) -> None:
        self._run = run
        self._name = name
        self._task: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self._name)
            self._task.add_done_callback(_look_at)
        return await asyncio.shield(self._task)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


def _look_at(task: asyncio.Task[T]) -> None:
    """Nobody may be left to see its exception."""
    if not task.cancelled():
        task.exception()
