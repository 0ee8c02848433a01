"""Many calls at once, ended together; and what must not hold up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, TypeVarTuple

__all__ = ["aside", "together"]

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
