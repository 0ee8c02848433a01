"""Waiting for something to become true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Bell"]


class Bell:
    """Rung by whoever changes something; everyone who waits then looks again.

    What `until` found true is still true when it returns: nothing else ran in between.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, true: Callable[[], bool], seconds: float) -> bool:
        """Whether it became true within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    await self._rung()
        except TimeoutError:
            return true()
        return True

    async def _rung(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
