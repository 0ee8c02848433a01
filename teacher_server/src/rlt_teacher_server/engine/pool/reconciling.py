"""Makes one engine hold what is wanted, and proves that it works."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from rlt_client.errors import InvalidRequest, Unavailable
from rlt_teacher_server.engine.base import Adapter, FullWeights, SampleRequest
from rlt_teacher_server.engine.pool.fleet import Fleet
from rlt_teacher_server.engine.pool.held import Target
from rlt_teacher_server.engine.pool.replica import Replica

__all__ = ["Reconciler"]

FIXED: Final = "weights_unavailable"  # the engine's word for: started without what it takes


class Reconciler:
    """Args:
    probe: a prompt of the model's.

    What it raises is `Unavailable`, `TimeoutError`, or whatever an engine says of the policy or of the probe.
    """

    def __init__(self, fleet: Fleet, probe: list[int]) -> None:
        self._fleet = fleet
        self._probe = SampleRequest(probe, max_tokens=1, seed=0)

    async def bring_up(self, replica: Replica) -> None:
        """Connect, make it hold what is wanted by the time that it is up, and let it serve."""
        async with asyncio.timeout(self._fleet.options.prove_s):
            await replica.engine.connect()
        replica.limits = replica.engine.limits
        async with replica.lock:
            while True:
                target = self._fleet.target
                await self._give(replica, target)
                if target is self._fleet.target:
                    replica.enter(target)
                    return

    async def exchange(self, replica: Replica, target: Target) -> None:
        """Give it what is not wanted yet. The caller lets it serve."""
        async with replica.lock:
            await self._give(replica, target)

    async def prove(self, replica: Replica) -> None:
        """One token of it, with its log-prob."""
        async with asyncio.timeout(self._fleet.options.prove_s):
            sample = await replica.sample(self._probe)
        if not sample.logprobs or not all(map(math.isfinite, sample.logprobs)):
            raise Unavailable(f"{replica.name}: no token with a log-prob", type="engine_misconfigured")

    async def same(self, replica: Replica) -> bool:
        """Whether it still holds what it held when it came up."""
        seen, held = replica.seen, await replica.engine.holds()
        if (seen and seen.revision) != (held and held.revision):
            return False
        if not (before := replica.adapters):
            return True
        there = await replica.engine.adapters()
        return before & replica.adapters <= there  # others were loaded or removed meanwhile

    async def _give(self, replica: Replica, target: Target) -> None:
        async with asyncio.timeout(self._fleet.options.load_s):
            await self._reconcile(replica, target)
        await self.prove(replica)

    async def _reconcile(self, replica: Replica, target: Target) -> None:
        there = await replica.engine.adapters()
        for name in replica.added & there - set(target.adapters):
            if not replica.samples:
                await replica.engine.remove(name)
                replica.added.discard(name)
        await self._full(replica, target.weights)
        there = await replica.engine.adapters()
        for adapter in target.adapters.values():
            if adapter.name not in there:
                await self._add(replica, adapter)

    async def _full(self, replica: Replica, wanted: FullWeights) -> None:
        held = await replica.engine.holds()
        if replica.spoilt or held is None or held.revision != wanted.revision:
            await self._replace(replica, wanted)
        replica.seen = await replica.engine.holds()

    async def _replace(self, replica: Replica, wanted: FullWeights) -> None:
        replica.break_off()  # what is left in it from before it went out
        if not await self._fleet.bell.until(lambda: not replica.samples, self._fleet.options.prove_s):
            raise Unavailable("samples in it do not end", type="engine_stuck")
        replica.spoilt = True  # until it serves
        try:
            await replica.engine.replace(wanted)
        except InvalidRequest as error:
            if error.type != FIXED or wanted.revision != self._fleet.base.revision:
                raise
            # it takes no other weights, so it has those that it was started with

    async def _add(self, replica: Replica, adapter: Adapter) -> None:
        replica.added.add(adapter.name)
        await replica.engine.add(adapter)
