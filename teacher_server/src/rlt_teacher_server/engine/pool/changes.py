"""Policies come, go and take each other's place, in all engines.

One change at a time; and each goes on to its end when its caller has gone: half of one would be a state of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from rlt_client.errors import Conflict, ItemError, Unavailable
from rlt_teacher_server.concurrency import Unattended
from rlt_teacher_server.engine.base import Adapter, FullWeights
from rlt_teacher_server.engine.pool.fleet import Fleet
from rlt_teacher_server.engine.pool.held import Target
from rlt_teacher_server.engine.pool.reconciling import Reconciler
from rlt_teacher_server.engine.pool.replica import FAILURES, Replica, State

__all__ = ["Changes"]

T = TypeVar("T")

REFUSAL_S: Final = 5.0  # for an engine to refuse, once more, what it refused before


class Changes:
    def __init__(self, fleet: Fleet, reconciler: Reconciler) -> None:
        self._fleet = fleet
        self._reconciler = reconciler
        self._one = asyncio.Lock()
        self._unattended = Unattended()

    async def add(self, adapter: Adapter) -> None:
        await self._finish(self._add(adapter))

    async def remove(self, name: str) -> None:
        await self._finish(self._remove(name))

    async def replace(self, weights: FullWeights, switch: Callable[[], None]) -> None:
        stale = await self._finish(self._replace(weights, switch))
        await self._others(stale)

    async def stop(self) -> None:
        await self._unattended.stop()

    async def _finish(self, change: Coroutine[Any, Any, T]) -> T:
        return await self._unattended.finish(self._alone(change), "change of engines")

    async def _alone(self, change: Coroutine[Any, Any, T]) -> T:
        try:
            await self._one.acquire()
        except BaseException:
            change.close()
            raise
        try:
            return await change
        finally:
            self._one.release()

    # Adapters

    async def _add(self, adapter: Adapter) -> None:
        fleet = self._fleet
        if not (replicas := fleet.current()):
            raise fleet.down()
        fleet.target = fleet.target.plus(adapter)
        failures = await asyncio.gather(*(self._load(replica, adapter) for replica in replicas))
        refused = next((error for error in failures if error and not isinstance(error, Unavailable)), None)
        if refused is None and any(adapter.name in replica.adapters for replica in fleet.current()):
            return
        fleet.target = fleet.target.minus(adapter.name)
        await self._unload(adapter.name)
        raise refused or next(filter(None, failures), None) or fleet.down()

    async def _load(self, replica: Replica, adapter: Adapter) -> Exception | None:
        """Into one engine; one that dies of it is out, and gets the adapter when it is back."""
        life = replica.life
        replica.added.add(adapter.name)
        try:
            async with replica.lock, asyncio.timeout(self._fleet.options.load_s):
                await replica.engine.add(adapter)
        except (Unavailable, TimeoutError) as error:
            replica.fail(error, life)
            return error if isinstance(error, Unavailable) else replica.unavailable()
        except Exception as error:  # it goes to the caller, once all engines have answered
            return error
        if replica.life == life:
            replica.adapters |= {adapter.name}
        return None

    async def _remove(self, name: str) -> None:
        fleet = self._fleet
        fleet.retiring.add(name)
        try:
            if not await fleet.bell.until(lambda: not fleet.holds_adapter(name), fleet.options.drain_s):
                raise _busy(f"requests still use {name}")
            fleet.target = fleet.target.minus(name)
            await self._unload(name)
        finally:
            fleet.retiring.discard(name)

    async def _unload(self, name: str) -> None:
        """From every engine that is up: the others start without it."""
        await asyncio.gather(*(self._unload_from(replica, name) for replica in self._fleet.replicas))

    async def _unload_from(self, replica: Replica, name: str) -> None:
        life = replica.life
        if not replica.serving or name not in replica.added:
            return
        replica.adapters -= {name}
        try:
            async with replica.lock, asyncio.timeout(self._fleet.options.load_s):
                await replica.engine.remove(name)
        except FAILURES as error:
            replica.fail(error, life)
        else:
            replica.added.discard(name)

    # Full weights

    async def _replace(self, weights: FullWeights, switch: Callable[[], None]) -> dict[Replica, int]:
        """In one engine; the others that are up, and how often they came up so far."""
        fleet = self._fleet
        if weights.revision == fleet.target.weights.revision:
            switch()
            return {}
        try:
            first = await self._vacate()
            target = Target(weights)
            await self._exchange(first, target)
            fleet.adopt(target)
            first.enter(target)
        finally:
            fleet.swapping = False
            fleet.bell.ring()
        switch()
        return {replica: replica.attempts for replica in fleet.replicas if fleet.stale(replica)}

    async def _vacate(self) -> Replica:
        """An engine that nobody uses, and that nobody needs for what it holds."""
        fleet = self._fleet
        fleet.swapping = True
        deadline = time.monotonic() + fleet.options.drain_s
        while candidates := fleet.current():
            replica = min(candidates, key=lambda each: each.samples)
            replica.to(State.leaving)
            await fleet.bell.until(lambda: self._vacated(replica), deadline - time.monotonic())  # noqa: B023 awaited here
            if replica.serving and fleet.free(replica):
                return replica
            if replica.serving:
                replica.to(State.up)
                raise _busy("requests still use the weights that are to be replaced")
        return await self._refusing()

    async def _refusing(self) -> Replica:
        """An engine that is there, and only does not take what it is to hold: the way out of weights whose files are
        gone."""
        fleet = self._fleet
        await fleet.bell.until(lambda: all(each.state is not State.coming for each in fleet.replicas), REFUSAL_S)
        for replica in fleet.replicas:
            if replica.state is State.down and replica.refuses:
                return replica
        raise fleet.down()

    def _vacated(self, replica: Replica) -> bool:
        return not replica.serving or self._fleet.free(replica)

    async def _exchange(self, replica: Replica, target: Target) -> None:
        """Raises what the engine raises, after its monitor has put the old weights back, or tried to."""
        attempts = replica.attempts
        replica.to(State.changing)
        try:
            await self._reconciler.exchange(replica, target)
        except Exception as error:
            replica.out(error)
            replica.wake()
            await self._fleet.bell.until(lambda: replica.attempts > attempts, self._fleet.options.load_s)
            if isinstance(error, TimeoutError):
                raise replica.unavailable() from error
            if isinstance(error, ItemError):
                raise Unavailable(str(error), type="engine_down", retry_after=1.0) from error
            raise

    async def _others(self, before: Mapping[Replica, int]) -> None:
        """Their monitors see to them; one that fails is out, and is brought back with the new weights."""
        fleet, options = self._fleet, self._fleet.options
        if await fleet.bell.until(lambda: not any(map(fleet.stale, before)), options.drain_s):
            await fleet.bell.until(lambda: all(each.attempts > before[each] for each in before), options.load_s)


def _busy(detail: str) -> Conflict:
    return Conflict(detail, type="policy_busy", retry_after=5.0)
