"""The pool as others see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from rlt_client.errors import Unavailable
from rlt_client.schemas.policies import EngineInfo
from rlt_teacher_server.engine.base import Adapter, Engine, FullWeights, Limits
from rlt_teacher_server.engine.pool.bell import Bell
from rlt_teacher_server.engine.pool.changes import Changes
from rlt_teacher_server.engine.pool.fleet import Fleet
from rlt_teacher_server.engine.pool.held import Held, Target
from rlt_teacher_server.engine.pool.monitor import Monitor
from rlt_teacher_server.engine.pool.options import Events, PoolOptions, Silent
from rlt_teacher_server.engine.pool.reconciling import Reconciler
from rlt_teacher_server.engine.pool.replica import Replica
from rlt_teacher_server.engine.pool.sessions import Session, open_session, revive

__all__ = ["Engines"]


class Engines:
    """Args:
    engines: by the names that people read.
    weights: the full weights that they were started with.
    probe: a prompt of the model's.
    wanted: the full weights that they are to be given first, if other ones.
    events: told of failures, for metrics.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        weights: FullWeights,
        probe: list[int],
        *,
        wanted: FullWeights | None = None,
        options: PoolOptions = PoolOptions(),
        events: Events | None = None,
    ) -> None:
        events = events or Silent()
        self._fleet = fleet = Fleet(weights, wanted or weights, Bell(), options, events)
        fleet.target = Target(wanted or weights)
        fleet.replicas = [Replica(name, engine, fleet.bell, events) for name, engine in engines.items()]
        reconciler = Reconciler(fleet, probe)
        self._changes = Changes(fleet, reconciler)
        self._monitors = [Monitor(replica, fleet, reconciler) for replica in fleet.replicas]
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Starts what runs in this process, and looks at every engine once; those that are not there may come later."""
        async with AsyncExitStack() as stack:
            for replica in self._fleet.replicas:
                await stack.enter_async_context(replica.engine)
            await stack.enter_async_context(self._watching())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def limits(self) -> Limits:
        """Of the smallest. Raises `Unavailable` while none of them has ever been up."""
        if not self._known():
            await revive(self._fleet, lambda: bool(self._known()))
        if not (known := self._known()):
            raise self._fleet.down()
        return min(known, key=lambda limits: limits.max_model_len)

    async def ready(self) -> None:
        """Raises `Unavailable` unless one of them serves: has given a token, and gets on where it is busy."""
        if not any(replica.serving for replica in self._fleet.replicas):
            await revive(self._fleet, lambda: any(replica.serving for replica in self._fleet.replicas))
        for replica in self._fleet.replicas:
            if replica.serving and await self._alive(replica):
                return
        raise self._fleet.down()

    @asynccontextmanager
    async def session(self, held: Held, *, beside: Session | None = None) -> AsyncIterator[Session]:
        """Hold a policy. Waits while full weights are put in the place of others in the only engine.

        Args:
            beside: a session that the caller has open. One on the same full weights does not wait for a change of
                them, which would wait for the caller.

        Raises:
            PolicyReplaced: these full weights, or this adapter, are not what the engines hold for new requests.
            Overloaded: their queues are full.
            Unavailable: none of them is up, or the only one was not given its weights in time (weights_changing).
        """
        async with open_session(self._fleet, held, beside) as session:
            yield session

    async def add(self, adapter: Adapter) -> None:
        """Load an adapter into every engine that is up, and into the others when they are.

        Raises what `Engine.add` raises, with the adapter in no engine.
        """
        await self._changes.add(adapter)

    async def remove(self, name: str) -> None:
        """Unload an adapter; new sessions of it end in `PolicyReplaced`, open ones are waited for.

        Raises:
            Conflict: policy_busy: they did not end in time; nothing was changed.
        """
        await self._changes.remove(name)

    async def replace(self, weights: FullWeights, switch: Callable[[], None]) -> None:
        """Put other full weights into every engine, one engine after the other, each when its sessions have ended.

        The adapters sit on the old weights and go with them. An engine that fails to take the new weights after
        another one did is out, and is given them again; one that old sessions keep busy for longer than `drain_s`
        gets them when those have ended.

        Args:
            switch: called once, as soon as an engine can serve the new weights.

        Raises:
            Conflict: policy_busy: sessions did not end in time; nothing was changed.
            and what `Engine.replace` raises, with the old weights in all engines again.
        """
        await self._changes.replace(weights, switch)

    def moved(self, held: Held) -> None:
        """What they hold already lies in another folder: those that come up read it there."""
        self._fleet.target = self._fleet.target.moved(held)

    async def infos(self) -> list[EngineInfo]:
        """What is known of each of them; their gauges are read now."""
        serving = [replica for replica in self._fleet.replicas if replica.serving]
        await asyncio.gather(*(replica.queue.read(replica.finished) for replica in serving))
        return self.figures()

    def figures(self) -> list[EngineInfo]:
        """The same at no cost: gauges as they were last read."""
        return [replica.info() for replica in self._fleet.replicas]

    def _known(self) -> list[Limits]:
        return [replica.limits for replica in self._fleet.replicas if replica.limits]

    async def _alive(self, replica: Replica) -> bool:
        """A busy one is its monitor's affair."""
        life = replica.life
        if not replica.samples:
            try:
                await replica.engine.alive()
            except Unavailable as error:
                replica.fail(error, life)
        return replica.serving

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        fleet = self._fleet
        tasks = [asyncio.create_task(monitor.run(), name="engine monitor") for monitor in self._monitors]
        try:
            await fleet.bell.until(lambda: all(each.attempts for each in fleet.replicas), fleet.options.start_s)
            yield
        finally:
            await self._changes.stop()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
