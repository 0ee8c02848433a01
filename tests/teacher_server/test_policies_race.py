"""Hundreds of requests while versions are published, activated, rolled back, unloaded and deleted.

Engines say in every sample what they held while it was made, so a request that got another version than it was told is
seen, whichever engine and whichever moment.
"""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections import Counter

import pytest
from plugins.fake_engine import asked, eventually
from plugins.policy_world import World, publish, told

from rlt_client.errors import Conflict, NotFound

KINDS = ["lora", "lora", "lora", "full", "activate", "rollback", "unload", "delete"]
CHANGES = 40
CALLERS = 30
PATIENT = {"drain_s": 20, "swap_wait_s": 20, "prove_s": 20}  # a busy machine is no failure


class Callers:
    """Ask for a policy by name, by revision or for none, some samples each, until told to stop."""

    def __init__(self, served, draws):
        self.served = served
        self.draws = draws
        self.outcomes = Counter()
        self.inside = Counter()
        self.stop = False

    def name(self):
        known = [info for info in self.served.policies.infos() if info.state.value != "retiring"]
        info = self.draws.choice(known)
        return self.draws.choice([None, info.name, info.revision, f"{info.name}@{info.revision}"])

    async def run(self):
        while not self.stop:
            name = self.name()
            try:
                await self._request(name)
                self.outcomes["done"] += 1
            except (NotFound, Conflict) as error:
                assert name is not None, "a request that names none always gets the active one"
                self.outcomes[error.type] += 1
            await asyncio.sleep(self.draws.choice([0, 0.005, 0.01]))

    async def _request(self, name):
        async with self.served.policies.using(name) as use:
            self.inside[use.policy.revision] += 1
            for _ in range(self.draws.choice([1, 1, 3])):
                group = use.group()
                samples = await asyncio.gather(*(group.sample(asked(seed=seed)) for seed in range(3)))
                assert {told(use.session.held, sample.finish_reason) for sample in samples} == {use.policy.revision}
                if name is not None and name.startswith("sha256"):
                    assert use.policy.revision == name
            self.inside[use.policy.revision] -= 1


async def change(served, world, draws, kind):
    name = draws.choice(["a", "b", "c"])
    activate = draws.random() < 0.5
    content = draws.randrange(8)
    if kind in ("lora", "full"):
        folder = getattr(world, kind)(f"{kind}-{content}", content)
        await publish(served, folder, name=name, activate=activate)
    elif kind == "rollback":
        await served.host.rollback()
    else:
        known = draws.choice(served.policies.infos())
        revision = draws.choice([None, known.revision])
        await getattr(served.host, kind)(known.name, revision)
    return kind


@pytest.mark.parametrize("count", [1, 3])
async def test_no_request_gets_another_version_than_it_is_told(tmp_path, count):
    draws = random.Random(count)
    kinds = draws.choices(KINDS, k=CHANGES)  # before the callers draw too, in an order of chance
    world = World(tmp_path)
    engines = [world.engine(seconds=0.03) for _ in range(count)]  # a loop without a pause would starve changes
    seen, made = weakref.WeakSet(), Counter()
    async with world.serving(*engines, state=tmp_path / "state.json", **PATIENT) as served:
        callers = Callers(served, draws)
        running = [asyncio.create_task(callers.run()) for _ in range(CALLERS)]
        for kind in kinds:
            try:
                made[await change(served, world, draws, kind)] += 1
            except (Conflict, NotFound) as error:
                made[error.type] += 1
            seen.update(served.host.book.versions)
            await asyncio.sleep(draws.choice([0, 0.005]))
        await eventually(lambda: callers.outcomes["done"] > 5 * CALLERS)
        callers.stop = True
        async with asyncio.timeout(60):
            await asyncio.gather(*running)
        assert made["full"] + made["lora"] > CHANGES / 4
        assert not +callers.inside
        assert not any(engine.wrong for engine in engines)
        assert all(info.requests == 0 and info.state.value != "retiring" for info in served.policies.infos())
        await _only_what_is_served(served, engines)
        gc.collect()
        assert set(seen) <= set(served.host.book.versions), "versions that nobody can ask for stay in memory"


async def _only_what_is_served(served, engines):
    wanted = {v.stay.held.adapter.name for v in served.host.book.versions if v.stay and v.stay.held.adapter}
    await eventually(lambda: all(set(engine.loaded) == wanted for engine in engines))
    assert {engine.full.revision for engine in engines} == {served.policies.weights.revision}
