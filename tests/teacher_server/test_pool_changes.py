"""Policies that come, go and take each other's place while requests run."""

from __future__ import annotations

import asyncio

import pytest
from plugins.fake_engine import FakeEngine, adapter, asked, eventually, pool, refusal, weights

from rlt_client.errors import Conflict, InvalidRequest, Unavailable
from rlt_teacher_server.engine.pool import Held, PolicyReplaced

BASE, NEW = Held(weights()), Held(weights("new"))


def up(pooled):
    return [info.up for info in pooled.figures()]


def nothing():
    pass


async def served(pooled, held):
    """What the engines give for a policy."""
    async with pooled.session(held) as session:
        return (await session.group().sample(asked())).finish_reason


async def refused(pooled, held):
    with pytest.raises(PolicyReplaced):
        await served(pooled, held)
    return True


# Adapters


async def test_an_adapter_comes_to_all_and_goes_from_all():
    engines = [FakeEngine() for _ in range(3)]
    async with pool(*engines) as pooled:
        await pooled.add(adapter("x"))
        assert [set(engine.loaded) for engine in engines] == [{"x"}] * 3
        await pooled.remove("x")
        assert [set(engine.loaded) for engine in engines] == [set()] * 3
        await pooled.remove("x")
        assert await refused(pooled, Held(weights(), adapter("x")))


async def test_an_adapter_that_one_engine_refuses_is_in_none():
    engines = [FakeEngine() for _ in range(3)]
    engines[1].refuses = {"x": refusal()}
    async with pool(*engines) as pooled:
        with pytest.raises(InvalidRequest, match="does not fit"):
            await pooled.add(adapter("x"))
        assert [set(engine.loaded) for engine in engines] == [set()] * 3
        assert await refused(pooled, Held(weights(), adapter("x")))
        assert all(up(pooled))


async def test_an_engine_that_dies_of_an_adapter_gets_it_when_it_is_back():
    engines = [FakeEngine(), FakeEngine()]
    engines[0].dies_of = {"x"}
    async with pool(*engines) as pooled:
        await pooled.add(adapter("x"))
        assert up(pooled) == [False, True]
        assert await served(pooled, Held(weights(), adapter("x"))) == "base/x"
        engines[0].dies_of = set()
        engines[0].start()
        await eventually(lambda: all(up(pooled)))
        assert set(engines[0].loaded) == {"x"}


async def test_an_engine_that_takes_too_long_over_an_adapter_is_out():
    engines = [FakeEngine(), FakeEngine()]
    async with pool(*engines, load_s=0.1) as pooled:
        engines[0].hangs = {"add"}
        await pooled.add(adapter("x"))
        assert up(pooled) == [False, True]


async def test_an_adapter_that_killed_every_engine_is_not_wanted_any_more():
    engines = [FakeEngine(), FakeEngine()]
    for engine in engines:
        engine.dies_of = {"x"}
    async with pool(*engines) as pooled:
        with pytest.raises(Unavailable):
            await pooled.add(adapter("x"))
        with pytest.raises(Unavailable):
            await pooled.add(adapter("y"))  # there is nobody
        for engine in engines:
            engine.start()
        await eventually(lambda: all(up(pooled)))
        assert [engine.loaded for engine in engines] == [{}, {}]


async def test_an_adapter_is_unloaded_when_its_last_session_ends():
    engine = FakeEngine()
    held = Held(weights(), adapter("x"))
    async with pool(engine) as pooled:
        await pooled.add(adapter("x"))
        async with pooled.session(held) as session:
            going = asyncio.create_task(pooled.remove("x"))
            await asyncio.sleep(0.02)
            assert await refused(pooled, held)
            assert (await session.group().sample(asked())).finish_reason == "base/x"
        await going
    assert not engine.loaded
    assert not engine.wrong


async def test_an_adapter_that_stays_in_use_stays():
    engine, held = FakeEngine(), Held(weights(), adapter("x"))
    async with pool(engine, drain_s=0.05) as pooled:
        await pooled.add(adapter("x"))
        async with pooled.session(held):
            with pytest.raises(Conflict) as caught:
                await pooled.remove("x")
            assert caught.value.type == "policy_busy"
            assert await served(pooled, held) == "base/x"


# Full weights


async def test_weights_take_the_place_of_others_in_all_engines_and_adapters_go_with_the_old():
    engines = [FakeEngine() for _ in range(3)]
    switched = []
    async with pool(*engines) as pooled:
        await pooled.add(adapter("x"))
        await pooled.replace(weights("new"), lambda: switched.append(sum(e.full == weights("new") for e in engines)))
        assert switched == [1]  # as soon as one engine can serve them
        assert [engine.full for engine in engines] == [weights("new")] * 3
        assert [engine.loaded for engine in engines] == [{}] * 3
        assert await served(pooled, NEW) == "new/"
        assert await refused(pooled, BASE)
        assert await refused(pooled, Held(weights(), adapter("x")))
        await pooled.replace(weights("new"), lambda: switched.append(-1))
        assert switched == [1, -1]
    assert [engine.asked["replace"] for engine in engines] == [1] * 3


async def test_a_session_keeps_its_weights_in_two_engines():
    """The old session moves to the engine that is left; that one waits for its end, and new ones use the other."""
    engines = [FakeEngine(seconds=0.01), FakeEngine(seconds=0.01)]
    switched = asyncio.Event()
    async with pool(*engines) as pooled:
        async with pooled.session(BASE) as old:
            group = old.group()
            replacing = asyncio.create_task(pooled.replace(weights("new"), switched.set))
            await switched.wait()
            for _ in range(5):
                assert (await group.sample(asked())).finish_reason == "base/"
                assert (await old.group().sample(asked())).finish_reason == "base/"
                assert await served(pooled, NEW) == "new/"
                assert await refused(pooled, BASE)
            assert sorted(engine.full.revision for engine in engines) == ["base", "new"]
            assert not replacing.done()
        await replacing
        assert [engine.full for engine in engines] == [weights("new")] * 2
    assert not any(engine.wrong for engine in engines)


async def test_samples_under_way_are_waited_for():
    engines = [FakeEngine(seconds=0.1), FakeEngine(seconds=0.1)]
    async with pool(*engines) as pooled, asyncio.TaskGroup() as tasks:
        async with pooled.session(BASE) as session:
            samples = [tasks.create_task(session.group().sample(asked())) for _ in range(6)]
            await asyncio.sleep(0.02)
            replacing = asyncio.create_task(pooled.replace(weights("new"), nothing))
            assert {sample.finish_reason for sample in await asyncio.gather(*samples)} == {"base/"}
        await replacing
    assert not any(engine.wrong for engine in engines)


async def test_new_requests_wait_while_the_only_engine_changes():
    engine = FakeEngine(seconds=0.05)
    async with pool(engine) as pooled:
        async with pooled.session(BASE) as session:
            replacing = asyncio.create_task(pooled.replace(weights("new"), nothing))
            await asyncio.sleep(0.02)
            waiting = asyncio.create_task(refused(pooled, BASE))
            assert (await session.group().sample(asked())).finish_reason == "base/"
            assert not waiting.done()
        assert await waiting
        await replacing
        assert await served(pooled, NEW) == "new/"
    assert not engine.wrong


async def test_new_requests_do_not_wait_for_ever():
    engine = FakeEngine()
    async with pool(engine, swap_wait_s=0.05) as pooled, pooled.session(BASE):
        replacing = asyncio.create_task(pooled.replace(weights("new"), nothing))
        await asyncio.sleep(0.02)
        with pytest.raises(Unavailable) as caught:
            await served(pooled, BASE)
        assert caught.value.type == "weights_changing"
        assert caught.value.retry_after
        replacing.cancel()


async def test_a_second_policy_of_a_request_does_not_wait_for_a_change_that_waits_for_the_request():
    engine = FakeEngine()
    async with pool(engine) as pooled:
        await pooled.add(adapter("x"))
        async with pooled.session(BASE) as first:
            replacing = asyncio.create_task(pooled.replace(weights("new"), nothing))
            await asyncio.sleep(0.02)
            async with pooled.session(Held(weights(), adapter("x")), beside=first) as second:
                assert (await second.group().sample(asked())).finish_reason == "base/x"
            assert engine.full == weights()
        await replacing


@pytest.mark.parametrize("count", [1, 2])
async def test_requests_that_do_not_end_keep_their_weights(count):
    engines, switched = [FakeEngine(seconds=0.5) for _ in range(count)], []
    async with pool(*engines, drain_s=0.1) as pooled, pooled.session(BASE) as session, asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(session.group().sample(asked()))
        await asyncio.sleep(0.02)
        with pytest.raises(Conflict) as caught:
            await pooled.replace(weights("new"), lambda: switched.append(1))
        assert caught.value.type == "policy_busy"
        assert not switched
        async with pooled.session(BASE) as other:
            assert (await other.group().sample(asked())).finish_reason == "base/"
    assert [engine.full for engine in engines] == [weights()] * count


async def test_the_last_engine_gets_the_weights_when_its_old_requests_end_however_late():
    engines = [FakeEngine(), FakeEngine()]
    async with pool(*engines, drain_s=0.1) as pooled:
        async with pooled.session(BASE) as old:
            await pooled.replace(weights("new"), nothing)
            await pooled.add(adapter("x"))
            assert await served(pooled, Held(weights("new"), adapter("x"))) == "new/x"
            assert (await old.group().sample(asked())).finish_reason == "base/"
        await eventually(lambda: all(set(engine.loaded) == {"x"} for engine in engines))
        await eventually(lambda: all(up(pooled)))


async def test_back_and_forth_while_an_old_request_goes_on():
    """The engine that still holds the old weights serves them again, and the old request has seen nothing."""
    engines = [FakeEngine() for _ in range(2)]
    async with pool(*engines, drain_s=0.1) as pooled:
        async with pooled.session(BASE) as old:
            await pooled.replace(weights("new"), nothing)
            await pooled.replace(weights(), nothing)
            assert await served(pooled, BASE) == "base/"
            assert (await old.group().sample(asked())).finish_reason == "base/"
        await eventually(lambda: all(engine.full == weights() for engine in engines))
    assert not any(engine.wrong for engine in engines)


# Weights that fail


@pytest.mark.parametrize("count", [1, 2])
async def test_weights_that_the_first_engine_refuses_change_nothing(count):
    engines, switched = [FakeEngine() for _ in range(count)], []
    for engine in engines:
        engine.refuses = {"new": refusal()}
    async with pool(*engines) as pooled:
        await pooled.add(adapter("x"))
        with pytest.raises(InvalidRequest, match="does not fit"):
            await pooled.replace(weights("new"), lambda: switched.append(1))
        assert not switched
        assert all(up(pooled))
        assert await served(pooled, Held(weights(), adapter("x"))) == "base/x"
    assert [engine.full for engine in engines] == [weights()] * count
    assert [set(engine.loaded) for engine in engines] == [{"x"}] * count


async def test_requests_wait_while_the_old_weights_are_put_back():
    engine = FakeEngine()
    engine.refuses = {"new": refusal()}
    engine.loading = 0.05
    async with pool(engine) as pooled:
        replacing = asyncio.create_task(pooled.replace(weights("new"), nothing))
        await asyncio.sleep(0.02)
        assert await served(pooled, BASE) == "base/"
        with pytest.raises(InvalidRequest):
            await replacing


async def test_an_engine_that_dies_of_new_weights_comes_back_with_the_old():
    engines, switched = [FakeEngine(), FakeEngine()], []
    for engine in engines:
        engine.dies_of = {"new"}
    async with pool(*engines) as pooled:
        with pytest.raises(Unavailable):
            await pooled.replace(weights("new"), lambda: switched.append(1))
        assert not switched
        assert up(pooled).count(True) == 1
        assert await served(pooled, BASE) == "base/"
        [engine.start() for engine in engines if not engine.up]
        await eventually(lambda: all(up(pooled)))
        assert [engine.full for engine in engines] == [weights()] * 2


async def test_weights_that_a_later_engine_refuses_are_active_and_that_engine_says_why():
    engines = [FakeEngine() for _ in range(3)]
    engines[2].refuses = {"new": refusal()}
    async with pool(*engines) as pooled:
        await pooled.replace(weights("new"), nothing)
        assert up(pooled) == [True, True, False]
        assert "does not fit" in (pooled.figures()[2].detail or "")
        assert await served(pooled, NEW) == "new/"
        engines[2].refuses = {}
        await eventually(lambda: all(up(pooled)))
        assert engines[2].full == weights("new")


async def test_an_engine_that_dies_while_it_is_emptied_leaves_it_to_another():
    """The first has one sample and is emptied; that one goes to the second, which then is the only one."""
    engines = [FakeEngine(seconds=5), FakeEngine(seconds=0.1)]
    async with pool(*engines) as pooled, asyncio.TaskGroup() as tasks:
        async with pooled.session(BASE) as session:
            groups = [session.group(), session.group()]
            samples = [tasks.create_task(groups[place].sample(asked())) for place in (0, 1, 1)]
            await asyncio.sleep(0.02)
            replacing = tasks.create_task(pooled.replace(weights("new"), nothing))
            await asyncio.sleep(0.02)
            assert [len(engine.inside) for engine in engines] == [1, 2]
            engines[0].kill()
            assert {sample.finish_reason for sample in await asyncio.gather(*samples)} == {"base/"}
        await replacing
        assert (engines[0].full, engines[1].full) == (weights(), weights("new"))
    assert not any(engine.wrong for engine in engines)


async def test_weights_that_take_too_long():
    engine = FakeEngine()
    async with pool(engine, load_s=0.1) as pooled:
        engine.hangs = {"replace"}
        with pytest.raises(Unavailable):
            await pooled.replace(weights("new"), nothing)
        engine.hangs = set()
        await eventually(lambda: all(up(pooled)))
        assert engine.full == weights()


# Callers who go


async def test_a_change_goes_on_when_its_caller_has_gone():
    engines, switched = [FakeEngine(), FakeEngine()], []
    for engine in engines:
        engine.loading = 0.1
    async with pool(*engines) as pooled:
        replacing = asyncio.create_task(pooled.replace(weights("new"), lambda: switched.append(1)))
        await asyncio.sleep(0.05)
        replacing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await replacing
        await eventually(lambda: all(engine.full == weights("new") for engine in engines))
        assert switched == [1]
        adding = asyncio.create_task(pooled.add(adapter("x")))
        await asyncio.sleep(0.02)
        adding.cancel()
        await eventually(lambda: all("x" in engine.loaded for engine in engines))
        await eventually(lambda: all(up(pooled)))


async def test_a_change_that_fails_when_its_caller_has_gone_leaves_no_trace():
    engines = [FakeEngine(), FakeEngine()]
    engines[1].refuses = {"x": refusal(), "new": refusal()}
    engines[0].refuses = {"new": refusal()}
    engines[0].loading = engines[1].loading = 0.05
    async with pool(*engines) as pooled:
        for change in (pooled.add(adapter("x")), pooled.replace(weights("new"), nothing)):
            task = asyncio.create_task(change)
            await asyncio.sleep(0.02)
            task.cancel()
        await pooled.remove("nobody")  # after both: changes wait for each other
        await eventually(lambda: all(up(pooled)))
        assert [engine.loaded for engine in engines] == [{}, {}]
        assert [engine.full for engine in engines] == [weights()] * 2


async def test_changes_wait_for_each_other():
    engine = FakeEngine()
    engine.loading = 0.02
    async with pool(engine) as pooled:
        changes = [pooled.add(adapter(name)) for name in "abc"]
        changes.append(pooled.replace(weights("new"), nothing))
        changes += [pooled.add(adapter(name)) for name in "de"]
        await asyncio.gather(*changes)
        assert set(engine.loaded) == {"d", "e"}
        assert engine.full == weights("new")
