"""Folders that go away under what is served, names that mean something else a moment later: what is left to do."""

from __future__ import annotations

import asyncio
import shutil
from types import SimpleNamespace

import pytest
from plugins.fake_engine import PROBE, QUICK, FakeEngine, eventually, pool, refusal, weights
from plugins.policy_world import World, held_by, publish

from rlt_client.errors import Conflict, InvalidRequest, Unavailable
from rlt_client.schemas.policies import LoadPolicy
from rlt_service.paths import AllowedRoots
from rlt_service.revision import model_revision
from rlt_teacher_server.engine.pool import pressure
from rlt_teacher_server.policies.starting import serving


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def active(served):
    return served.policies.info(served.host.book.active)


async def test_an_active_adapter_that_was_lost_can_be_activated_again(world):
    first, second = world.engine(), world.engine()
    async with world.serving(first, second) as served:
        folder = world.lora("adapter", 1)
        revision = (await publish(served, folder, activate=True)).version.ref.revision
        elsewhere = folder.rename(world.root / "elsewhere")
        second.restart()
        await eventually(lambda: active(served).detail is not None)
        elsewhere.rename(folder)
        await served.host.activate("run")
        assert await held_by(served) == revision
        assert [version.ref.name for version in served.host.book.history] == ["base"]


async def test_nobody_is_told_where_a_lost_policy_lies(world):
    first, second = world.engine(), world.engine()
    async with world.serving(first, second) as served:
        folder = world.lora("adapter", 1)
        await publish(served, folder, activate=True)
        shutil.rmtree(folder)
        second.restart()
        await eventually(lambda: active(served).detail is not None)
        with pytest.raises(Conflict) as caught:
            await held_by(served)
        assert "adapter" in (active(served).detail or "")
        assert str(world.root) not in f"{active(served).detail}{caught.value}"


async def test_the_way_out_of_full_weights_whose_folder_is_gone(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        folder = world.full("v2", 5)
        await publish(served, folder, activate=True)
        shutil.rmtree(folder)
        engine.restart()
        await eventually(lambda: "gone" in (served.engines.figures()[0].detail or ""))
        assert str(world.root) not in (served.engines.figures()[0].detail or "")
        await served.host.rollback()
        assert await held_by(served) == world.model.ref.revision
        assert served.engines.figures()[0].up


async def test_a_version_that_is_published_again_from_elsewhere_outlives_its_first_folder(world):
    engines = [world.engine(), world.engine()]
    async with world.serving(*engines) as served:
        for make in (world.full, world.lora):
            first, again = make(f"first-{make.__name__}", 1), make(f"again-{make.__name__}", 1)
            revision = (await publish(served, first, name=make.__name__, activate=True)).version.ref.revision
            assert not (await publish(served, again, name=make.__name__)).loaded
            shutil.rmtree(first)
        for engine in engines:
            engine.restart()
            await eventually(lambda: all(each.full != each.base and each.loaded for each in engines))
            await eventually(lambda: all(info.up for info in served.engines.figures()))
        assert await held_by(served, "lora") == revision


async def test_a_name_means_its_newest_version_for_those_who_waited_for_it(world):
    engine = world.engine(seconds=0.2)
    async with world.serving(engine) as served:
        await publish(served, world.full("v1", 1), name="p", activate=True)
        busy = asyncio.create_task(held_by(served, "p"))
        await eventually(lambda: engine.inside)
        change = asyncio.create_task(publish(served, world.full("v2", 2), name="p", activate=True))
        await eventually(lambda: not served.engines._fleet.open_to(served.host.book.active.stay.held))
        got = await held_by(served, "p")
        newest = (await change).version.ref.revision
        assert got == newest != await busy


async def test_no_look_at_an_engine_samples_in_it_while_it_is_given_weights():
    engine = FakeEngine()
    looking, go_on, changing, changed = (asyncio.Event() for _ in range(4))
    holds, replace = engine.holds, engine.replace

    async def slow_holds():
        if (task := asyncio.current_task()) and task.get_name() == "engine monitor" and not looking.is_set():
            looking.set()
            await go_on.wait()
        return await holds()

    async def slow_replace(given):
        changing.set()
        await changed.wait()
        await replace(given)

    async with pool(engine, proof_s=0) as pooled:
        engine.holds, engine.replace = slow_holds, slow_replace
        await looking.wait()
        change = asyncio.create_task(pooled.replace(weights("new"), lambda: None))
        await changing.wait()
        before = engine.asked["probe"]
        go_on.set()
        await asyncio.sleep(0.05)  # time for what must not happen
        assert engine.asked["probe"] == before
        changed.set()
        await change
        assert not engine.wrong


async def test_a_policy_from_a_folder_that_is_not_allowed_any_more_is_not_activated(world, tmp_path):
    state = tmp_path / "state.json"
    async with world.serving(state=state) as served:
        await publish(served, world.full("v2", 2), name="v2")
    (world.root / "narrow").mkdir()
    roots = AllowedRoots([world.root / "narrow"])
    async with serving({"a": world.engine()}, world.model, PROBE, roots=roots, state=state, options=QUICK) as served:
        with pytest.raises(InvalidRequest) as caught:
            await served.host.activate("v2")
        assert caught.value.type == "path_not_allowed"
        assert await held_by(served) == world.model.ref.revision


async def test_a_refusal_does_not_tell_where_the_roots_lie(world):
    async with world.serving() as served:
        with pytest.raises(InvalidRequest, match=r"adapter_config.json: runs/nothing") as caught:
            await served.host.load(LoadPolicy(name="x", source="runs/nothing"))
        assert str(world.root) not in str(caught.value)


async def test_a_way_out_that_is_refused_too_changes_nothing(world):
    gone, dead = world.engine(), world.engine()
    async with world.serving(gone, dead) as served:
        folder, other = world.full("v2", 5), world.full("v3", 6)
        revision = (await publish(served, folder, activate=True)).version.ref.revision
        shutil.rmtree(folder)
        dead.kill()
        gone.restart()
        gone.refuses[model_revision(other)] = refusal()
        await eventually(lambda: "gone" in (served.engines.figures()[0].detail or ""))
        await _refused(served, other)
        assert active(served).revision == revision
        world.full("v2", 5)
        await eventually(lambda: served.engines.figures()[0].up)
        assert await held_by(served) == revision


async def _refused(served, folder):
    """A monitor that looks at the engine just then makes it a 503, which is asked again."""
    async with asyncio.timeout(60):
        while True:
            try:
                await publish(served, folder, name="v3", activate=True)
            except Unavailable:
                await asyncio.sleep(0.05)
            except InvalidRequest:
                return


async def test_the_rate_behind_retry_after_does_not_sink_when_many_people_look(monkeypatch):
    now = 100.0
    monkeypatch.setattr(pressure, "time", SimpleNamespace(monotonic=lambda: now))
    queue = pressure.Queue(FakeEngine(), lambda: 40)
    for finished in (0, 10):
        await queue.read(finished)
        now += 1
    for _ in range(50):
        await queue.read(10)
        now += 0.002
    assert queue.seconds_until(10) < 10
