"""Coalesces single calls into batches. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from rlt_client.errors import PayloadTooLarge, ProtocolError

L = TypeVar("L", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")

__all__ = ["Batcher", "leader"]


def _first(contexts: Sequence[Context]) -> Context:
    return contexts[0]


leader: Callable[[Sequence[Context]], Context] = _first
"""Whose context a batch is sent in, of those of its items: log lines and traces go by it. Tracing replaces this."""


@dataclass(slots=True)
class _Entry(Generic[T, R]):
    item: T
    group: Hashable
    cost: int
    result: asyncio.Future[R]
    context: Context = field(default_factory=copy_context)


class Batcher(Generic[L, T, R]):
    """Collects items that may travel together (a *lane*) for `window` seconds, then sends them as few batches.

    A batch holds `max_items` and a cost of `max_cost` at most. Items of one group (the samples of one question) stay
    in one batch wherever it can hold them. A batch that is refused as too large is sent again in halves. A batch none
    of whose callers still waits is not sent, or cancelled.
    """

    def __init__(
        self,
        send: Callable[[L, list[T]], Awaitable[list[R]]],
        *,
        window: float,
        max_items: int,
        max_cost: int,
        concurrency: int,
    ) -> None:
        self._send = send
        self._window = window
        self._max_items = max_items
        self._max_cost = max_cost
        self._slots = asyncio.Semaphore(concurrency)
        self._lanes: dict[L, list[_Entry[T, R]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, lane: L, group: Hashable, item: T, cost: int) -> R:
        """Queue one item and wait for its result."""
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if lane not in self._lanes:
            self._lanes[lane] = []
            asyncio.get_running_loop().call_later(self._window, self._flush, lane)
        self._lanes[lane].append(_Entry(item, group, cost, result))
        return await result

    async def close(self) -> None:
        """Cancel everything that is queued or under way."""
        for entries in self._lanes.values():
            _cancel(entries)
        self._lanes.clear()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _flush(self, lane: L) -> None:
        for batch in self._pack(self._lanes.pop(lane, [])):
            context = leader([entry.context for entry in batch])
            task = asyncio.create_task(self._run(lane, batch), context=context)
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            task.add_done_callback(partial(_cancel_rest, batch))

    def _pack(self, entries: list[_Entry[T, R]]) -> Iterator[list[_Entry[T, R]]]:
        """Groups in order of arrival, as many as fit; a group that is too large by itself is cut."""
        groups: dict[Hashable, list[_Entry[T, R]]] = {}
        for entry in entries:
            groups.setdefault(entry.group, []).append(entry)
        batch: list[_Entry[T, R]] = []
        for group in groups.values():
            if batch and not self._fits(batch + group):
                yield batch
                batch = []
            for entry in group:
                if batch and not self._fits([*batch, entry]):
                    yield batch
                    batch = []
                batch.append(entry)
        if batch:
            yield batch

    def _fits(self, batch: list[_Entry[T, R]]) -> bool:
        return len(batch) <= self._max_items and sum(entry.cost for entry in batch) <= self._max_cost

    async def _run(self, lane: L, batch: list[_Entry[T, R]]) -> None:
        async with self._slots:
            batch = [entry for entry in batch if not entry.result.done()]
            if batch:
                await self._deliver(lane, batch)

    async def _deliver(self, lane: L, batch: list[_Entry[T, R]]) -> None:
        watched = asyncio.ensure_future(self._send(lane, [entry.item for entry in batch]))
        forsaken = _cancel_when_all_done(watched, batch)
        try:
            results = await watched
            if len(results) != len(batch):
                raise ProtocolError(f"{len(batch)} items were sent and {len(results)} results came back")
        except PayloadTooLarge as error:
            await self._halve(lane, batch, error)
        except asyncio.CancelledError:
            if not forsaken():
                raise
        except Exception as error:  # whatever went wrong with the batch is every caller's answer
            _fail(batch, error)
        else:
            for entry, result in zip(batch, results, strict=True):
                if not entry.result.done():
                    entry.result.set_result(result)

    async def _halve(self, lane: L, batch: list[_Entry[T, R]], error: PayloadTooLarge) -> None:
        if len(batch) == 1:
            _fail(batch, error)
            return
        middle = len(batch) // 2
        await self._deliver(lane, batch[:middle])
        await self._deliver(lane, batch[middle:])


def _cancel_rest(batch: list[_Entry[T, R]], _: object) -> None:
    _cancel(batch)


def _cancel(batch: list[_Entry[T, R]]) -> None:
    for entry in batch:
        entry.result.cancel()


def _fail(batch: list[_Entry[T, R]], error: Exception) -> None:
    for entry in batch:
        if not entry.result.done():
            entry.result.set_exception(error)


def _cancel_when_all_done(sending: asyncio.Future[list[R]], batch: list[_Entry[T, R]]) -> Callable[[], bool]:
    """Cancel the request once every caller has gone (been cancelled). Returns whether that is so."""

    def forsaken() -> bool:
        return all(entry.result.cancelled() for entry in batch)

    def check(_: asyncio.Future[R]) -> None:
        if forsaken():
            sending.cancel()

    for entry in batch:
        entry.result.add_done_callback(check)
    return forsaken
