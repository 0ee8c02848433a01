"""Many calls at once, ended together; and what must not hold up the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, TypeVarTuple

__all__ = ["Unattended", "aside", "together"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def aside(work: Callable[[*Ts], T], *args: *Ts, brief: bool) -> T:
    """The result of `work`, from a thread unless it is `brief`: going there and back costs tenths of a millisecond."""
    return work(*args) if brief else await asyncio.to_thread(work, *args)


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order. The first that raises cancels the others; its exception comes out as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class Unattended:
    """Works that go on when whoever asked for them has gone: half of one would be a state of its own."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Its result, or what it raises."""
        return await asyncio.shield(self.begin(work, name))

    async def stop(self) -> None:
        """Break off what has not ended."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Somebody has to look at the error of what nobody waits for any more."""
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.info("an unattended work failed", extra={"work": task.get_name(), "reason": str(error)})
