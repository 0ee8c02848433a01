"""Coalesces single calls into batches. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rlt_client.errors import PayloadTooLarge, ProtocolError

L = TypeVar("L", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")

__all__ = ["Batcher"]


@dataclass(slots=True)
class _Entry(Generic[T, R]):
    item: T
    group: Hashable
    cost: int
    result: asyncio.Future[R]


@dataclass(slots=True)
class _Lane(Generic[T, R]):
    entries: list[_Entry[T, R]] = field(default_factory=list)
    cost: int = 0
    timer: asyncio.TimerHandle | None = None


class Batcher(Generic[L, T, R]):
    """Collects items that may travel together (a *lane*) for `window` seconds, then sends them as few batches.

    Items of one group (the samples of one question) stay in one batch wherever it can hold them. A batch that is
    refused as too large is sent again in halves. A batch none of whose callers still waits is not sent, or cancelled.
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
        self._lanes: dict[L, _Lane[T, R]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, lane: L, group: Hashable, item: T, cost: int) -> R:
        """Queue one item and wait for its result."""
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        waiting = self._lanes.setdefault(lane, _Lane())
        waiting.entries.append(_Entry(item, group, cost, result))
        waiting.cost += cost
        if len(waiting.entries) >= self._max_items or waiting.cost >= self._max_cost:
            self._flush(lane)
        elif waiting.timer is None:
            waiting.timer = asyncio.get_running_loop().call_later(self._window, self._flush, lane)
        return await result

    async def close(self) -> None:
        """Cancel everything that is queued or under way."""
        for lane in list(self._lanes):
            self._flush(lane)
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _flush(self, lane: L) -> None:
        waiting = self._lanes.pop(lane, None)
        if waiting is None:
            return
        if waiting.timer is not None:
            waiting.timer.cancel()
        for batch in self._pack(waiting.entries):
            task = asyncio.create_task(self._run(lane, batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

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
        try:
            async with self._slots:
                batch = [entry for entry in batch if not entry.result.done()]
                if batch:
                    await self._deliver(lane, batch)
        except asyncio.CancelledError:
            for entry in batch:
                entry.result.cancel()
            raise

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
            return _fail(batch, error)
        middle = len(batch) // 2
        await self._deliver(lane, batch[:middle])
        await self._deliver(lane, batch[middle:])


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
