"""Hundreds of requests while weights go back and forth, adapters come and go, and engines die and come back.

Each sample says what its engine held, so a request that got anything else than what its session holds is seen.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from plugins.fake_engine import FakeEngine, adapter, asked, eventually, pool, weights

from rlt_client.errors import Conflict, ItemError, Unavailable
from rlt_teacher_server.engine.pool import Engines, Held, PolicyReplaced

REQUESTS = 300
SWAPS = 12


@dataclass
class Registry:
    """Knows what is served, as the policies do."""

    pooled: Engines
    draws: random.Random
    weights: str = "base"
    adapters: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    over: bool = False

    def choose(self) -> Held:
        name = self.draws.choice([None, *sorted(self.adapters)])
        return Held(weights(self.weights), adapter(name) if name else None)

    async def request(self) -> None:
        """Asked for again until it is answered, as a client does."""
        while True:
            try:
                await self._attempt()
            except (PolicyReplaced, Unavailable, ItemError) as error:
                self.outcomes[getattr(error, "type", type(error).__name__)] += 1
                await asyncio.sleep(self.draws.uniform(0, 0.04))
            else:
                self.outcomes["done"] += 1
                return

    async def _attempt(self) -> None:
        held = self.choose()
        async with self.pooled.session(held) as session:
            for _ in range(self.draws.choice([1, 1, 3])):  # one question after the other: a swap falls in between
                group = session.group()
                samples = await asyncio.gather(
                    *(group.sample(asked(seed=seed)) for seed in range(self.draws.choice([1, 4]))),
                    return_exceptions=True,
                )
                for sample in samples:
                    if isinstance(sample, BaseException):
                        raise sample
                    expected = f"{held.weights.revision}/{held.adapter.name if held.adapter else ''}"
                    assert sample.finish_reason == expected

    async def swap(self) -> None:
        for place in range(SWAPS):
            await asyncio.sleep(self.draws.uniform(0, 0.03))
            other = weights(("new", "base")[place % 2])
            await self._insist(lambda other=other: self.pooled.replace(other, lambda: self._switched(other.revision)))

    def _switched(self, revision: str) -> None:
        self.weights = revision
        self.adapters.clear()
        self.outcomes["switched"] += 1

    async def load(self) -> None:
        for place in range(10_000):
            await asyncio.sleep(self.draws.uniform(0, 0.02))
            if self.over:
                return
            name = f"x{place}"
            await self._insist(lambda name=name: self.pooled.add(adapter(name)))
            self.adapters.add(name)
            while len(self.adapters) > 3:
                gone = self.draws.choice(sorted(self.adapters))
                self.adapters.discard(gone)
                await self._insist(lambda gone=gone: self.pooled.remove(gone))

    async def kill(self, engines: list[FakeEngine]) -> None:
        while not self.over:
            await asyncio.sleep(self.draws.uniform(0.1, 0.2))
            victim = self.draws.choice(engines)
            victim.kill()
            await asyncio.sleep(self.draws.uniform(0, 0.05))
            victim.start()
            self.outcomes["killed"] += 1

    async def _insist(self, change):
        while True:
            try:
                return await change()
            except (Unavailable, Conflict):
                await asyncio.sleep(0.01)

    async def ask(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(REQUESTS):
                tasks.create_task(self.request())
                await asyncio.sleep(self.draws.uniform(0, 0.004))


@pytest.mark.parametrize("deaths", [False, True], ids=["well", "dying"])
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_no_request_ever_mixes_policies_and_none_is_lost(count, deaths):
    engines = [FakeEngine(seconds=0.008 * (1 + place)) for place in range(count)]
    for engine in engines:
        engine.loading = 0.004
    # one, or all that run, may be killed in the middle of a change: short waits, so that the test goes on
    async with asyncio.timeout(60), pool(*engines, revive_s=0.05) as pooled:
        registry = Registry(pooled, random.Random(count))
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(registry.load())]
            if deaths:
                others.append(tasks.create_task(registry.kill(engines)))
            await asyncio.gather(registry.ask(), registry.swap())
            registry.over = True
        await eventually(lambda: all(info.up for info in pooled.figures()) and _whole(registry, engines))
        assert registry.outcomes["done"] == REQUESTS
        assert registry.outcomes["switched"] == SWAPS
        assert [info.samples for info in pooled.figures()] == [0] * count
    assert [engine.wrong for engine in engines] == [[]] * count
    if deaths:
        assert registry.outcomes["killed"] > 2
    else:
        assert set(registry.outcomes) <= {"done", "switched", "PolicyReplaced"}


def _whole(registry: Registry, engines: list[FakeEngine]) -> bool:
    """The last death may not have been noticed yet, when all seem to be up."""
    return all(
        engine.full is not None and engine.full.revision == registry.weights and registry.adapters <= set(engine.loaded)
        for engine in engines
    )
