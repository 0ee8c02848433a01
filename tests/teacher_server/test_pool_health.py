"""Engines that die, hang, are started anew and come back."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from itertools import pairwise

import pytest
from plugins.fake_engine import PROBE, FakeEngine, adapter, asked, eventually, pool, refusal, weights

from rlt_client.errors import ItemError, Unavailable
from rlt_teacher_server.engine.base import Sample
from rlt_teacher_server.engine.pool import Held
from rlt_teacher_server.engine.pool.replica import Replica

BASE = Held(weights())


class Counted:
    def __init__(self) -> None:
        self.failed = Counter[str]()
        self.restarted = Counter[str]()

    def engine_failed(self, engine: str) -> None:
        self.failed[engine] += 1

    def sample_restarted(self, engine: str) -> None:
        self.restarted[engine] += 1


def up(pooled):
    return [info.up for info in pooled.figures()]


# Death


async def test_samples_of_a_dead_engine_begin_anew_in_another():
    engines, counted, told = [FakeEngine(seconds=0.1), FakeEngine(seconds=0.1)], Counted(), []
    async with pool(*engines, events=counted) as pooled, pooled.session(BASE) as session:
        group = session.group()
        samples = [
            asyncio.create_task(
                group.sample(
                    asked(seed=seed),
                    lambda _, seed=seed: told.append(("token", seed)),
                    lambda seed=seed: told.append(("restarted", seed)),
                )
            )
            for seed in range(6)
        ]
        await eventually(lambda: {seed for _, seed in told} == set(range(6)))
        [victim] = [engine for engine in engines if engine.inside]
        victim.kill()
        done = await asyncio.gather(*samples)
        assert up(pooled).count(True) == 1
    assert [sample.token_ids[0] for sample in done] == list(range(6))
    for seed in range(6):
        mine = [event for event, each in told if each == seed]
        first = mine.index("restarted")
        assert first > 0
        assert mine[first + 1 :] == ["token"] * 4
    assert sum(counted.failed.values()) == 1
    assert sum(counted.restarted.values()) == 6


async def test_a_request_that_kills_its_engines_gets_no_third():
    engines = [FakeEngine(seconds=0.05) for _ in range(3)]
    for engine in engines:
        engine.poison = {13}
    async with pool(*engines) as pooled, pooled.session(BASE) as session:
        with pytest.raises(ItemError) as caught:
            await session.group().sample(asked(seed=13))
        assert caught.value.problem.type == "engine_failed"
        assert up(pooled).count(True) == 1
        await session.group().sample(asked(seed=1))


async def test_without_another_engine_the_failure_is_the_caller_s():
    engine = FakeEngine(seconds=0.2)
    async with pool(engine) as pooled, pooled.session(BASE) as session:
        sample = asyncio.create_task(session.group().sample(asked()))
        await asyncio.sleep(0.02)
        engine.kill()
        with pytest.raises(Unavailable, match="connection refused"):
            await sample
        with pytest.raises(Unavailable) as caught:
            await session.group().sample(asked())
        assert (caught.value.type, caught.value.retry_after) == ("engine_down", 1.0)
        with pytest.raises(Unavailable):
            async with pooled.session(BASE):
                pass
        with pytest.raises(Unavailable):
            await pooled.ready()


async def test_a_request_finds_an_engine_that_has_just_come_back():
    """However long ago its monitor looked last."""
    engine = FakeEngine()
    async with pool(engine, retry_first_s=60, retry_last_s=60) as pooled:
        engine.kill()
        await eventually(lambda: not any(up(pooled)))
        await asyncio.sleep(0.1)
        engine.start()
        async with pooled.session(BASE) as session:
            await session.group().sample(asked())


async def test_engines_may_come_after_the_teacher():
    engines = [FakeEngine(), FakeEngine()]
    for engine in engines:
        engine.kill()
    async with pool(*engines) as pooled:
        for wait in (pooled.ready, pooled.limits):
            with pytest.raises(Unavailable, match="no engine is up; a: connection refused; b: connection refused"):
                await wait()
        engines[1].start()
        await eventually(lambda: up(pooled) == [False, True])
        await pooled.ready()
        assert (await pooled.limits()).max_model_len == 100


async def test_an_engine_that_does_not_answer_at_start_holds_nobody_up():
    hung, well = FakeEngine(), FakeEngine()
    hung.hangs = {"connect"}
    async with asyncio.timeout(60), pool(hung, well, start_s=0.1, prove_s=600) as pooled:
        async with pooled.session(BASE) as session:
            await session.group().sample(asked())
        assert up(pooled) == [False, True]


async def test_an_engine_that_fails_without_having_died_keeps_what_runs_in_it():
    """One connection breaks; the engine is looked at, found well, and its other samples are never told."""
    engine = FakeEngine(seconds=0.1)
    async with pool(engine) as pooled, pooled.session(BASE) as session:
        group = session.group()
        one, other = (asyncio.create_task(group.sample(asked(seed=seed))) for seed in (1, 2))
        await asyncio.sleep(0.03)
        broken = next(future for future, request in engine.inside.items() if request.seed == 1)
        broken.set_exception(Unavailable("reset"))
        with pytest.raises(Unavailable, match="reset"):
            await one
        assert isinstance(await other, Sample)
        await eventually(lambda: all(up(pooled)))


async def test_a_caller_who_goes_takes_its_sample_along_and_no_engine_out():
    engine = FakeEngine(seconds=5)
    async with pool(engine) as pooled, pooled.session(BASE) as session:
        sample = asyncio.create_task(session.group().sample(asked()))
        await asyncio.sleep(0.02)
        sample.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sample
        assert not engine.inside
        assert up(pooled) == [True]


# Hanging


async def test_a_busy_engine_that_gets_nowhere_is_out_and_its_samples_go_on_elsewhere():
    engines = [FakeEngine(seconds=0.05), FakeEngine(seconds=0.05)]
    async with pool(*engines) as pooled, pooled.session(BASE) as session:
        engines[0].stuck = True
        engines[0].hangs = {"gauges"}  # which matters to nobody
        done = await asyncio.gather(*(session.group().sample(asked(seed=seed)) for seed in range(4)))
        assert sorted(sample.token_ids[0] for sample in done) == [0, 1, 2, 3]
        assert engines[0].asked["sample"] == 2
        assert up(pooled) == [False, True]
        engines[0].stuck = False
        await eventually(lambda: all(up(pooled)))


async def test_a_busy_engine_that_gets_on_is_believed_whatever_else_it_does_not_answer():
    engine = FakeEngine(seconds=0.5)
    async with pool(engine, prove_s=0.05) as pooled, pooled.session(BASE) as session:
        sample = asyncio.create_task(session.group().sample(asked()))
        await asyncio.sleep(0.02)
        engine.hangs = {"holds", "adapters"}
        await asyncio.sleep(0.3)
        assert up(pooled) == [True]
        engine.hangs = set()
        await sample


# Proof


class Timed(FakeEngine):
    """Notes how long nothing had proved it, at the begin of each probe."""

    def __init__(self):
        super().__init__()
        self.proved = -math.inf
        self.unproved = []

    async def sample(self, request, watch=None):
        if request.prompt_token_ids == PROBE:
            self.unproved.append(time.monotonic() - self.proved)
        sample = await super().sample(request, watch)
        self.proved = time.monotonic()
        return sample


async def test_one_token_proves_an_idle_engine_for_a_while():
    engine = Timed()
    async with pool(engine, proof_s=0.1, check_s=0.005) as pooled:
        for _ in range(5):
            await pooled.ready()
        await eventually(lambda: len(engine.unproved) == 3)
    assert min(engine.unproved) >= 0.1


async def test_samples_prove_it_too():
    engine = Timed()
    async with pool(engine, proof_s=0.1, check_s=0.005) as pooled, pooled.session(BASE) as session:
        for _ in range(30):
            await session.group().sample(asked())
            await asyncio.sleep(0.01)
    assert min(engine.unproved) >= 0.1


async def test_an_engine_without_a_usable_token_never_serves(monkeypatch):
    engine = FakeEngine()

    async def sample(request, watch=None):
        return Sample([1], [float("nan")], "length", 0, 0, 0)

    monkeypatch.setattr(engine, "sample", sample)
    async with pool(engine) as pooled:
        with pytest.raises(Unavailable, match="no token with a log-prob"):
            await pooled.ready()


async def test_an_idle_engine_that_gives_no_token_any_more_is_out():
    engine = FakeEngine()
    async with pool(engine, proof_s=0.05, prove_s=0.1) as pooled:
        engine.hangs = {"probe"}
        await eventually(lambda: up(pooled) == [False])
        engine.hangs = set()
        await eventually(lambda: up(pooled) == [True])


# Coming back


async def test_a_start_that_nobody_noticed_is_noticed():
    """It forgot weights and adapters, and no request failed in between."""
    engine = FakeEngine()
    async with pool(engine) as pooled:
        await pooled.replace(weights("new"), lambda: None)
        await pooled.add(adapter("x"))
        engine.restart()
        assert engine.full == weights()
        await eventually(lambda: engine.full == weights("new") and "x" in engine.loaded)
        await eventually(lambda: up(pooled) == [True])
        async with pooled.session(Held(weights("new"), adapter("x"))) as session:
            assert (await session.group().sample(asked())).finish_reason == "new/x"


async def test_a_start_that_lost_only_adapters_is_noticed():
    engine = FakeEngine()
    async with pool(engine) as pooled:
        await pooled.add(adapter("x"))
        engine.restart()
        await eventually(lambda: "x" in engine.loaded)


class SlowToTell(FakeEngine):
    """Of its adapters, when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.tell, self.asked_for = asyncio.Event(), asyncio.Event()
        self.tell.set()

    async def adapters(self):
        self.asked_for.set()
        await self.tell.wait()
        return await super().adapters()


async def test_an_adapter_that_is_removed_while_the_engine_tells_what_it_holds_is_no_loss():
    engine, counted = SlowToTell(), Counted()
    async with pool(engine, events=counted) as pooled:
        await pooled.add(adapter("x"))
        engine.tell.clear()
        engine.asked_for.clear()
        await asyncio.wait_for(engine.asked_for.wait(), 60)
        await pooled.remove("x")
        engine.tell.set()
        looks = engine.asked["holds"]
        await eventually(lambda: engine.asked["holds"] > looks + 1)
        assert not counted.failed


async def test_what_changed_while_an_engine_was_away():
    engines = [FakeEngine(), FakeEngine()]
    async with pool(*engines) as pooled:
        await pooled.add(adapter("early"))
        engines[1].kill()
        await eventually(lambda: up(pooled) == [True, False])
        await pooled.replace(weights("new"), lambda: None)
        await pooled.add(adapter("late"))
        await pooled.add(adapter("gone"))
        await pooled.remove("gone")
        engines[1].start()
        await eventually(lambda: all(up(pooled)))
    assert [engine.full for engine in engines] == [weights("new")] * 2
    assert [set(engine.loaded) for engine in engines] == [{"late"}] * 2


async def test_what_changes_while_an_engine_comes_back():
    """Its adapters take long to load; meanwhile there is another one."""
    engines = [FakeEngine(), FakeEngine()]
    async with pool(*engines) as pooled:
        await pooled.add(adapter("x"))
        engines[1].kill()
        await eventually(lambda: not up(pooled)[1])
        engines[1].loading = 0.1
        engines[1].start()
        await eventually(lambda: engines[1].asked["add"] == 2)
        await pooled.add(adapter("y"))
        await eventually(lambda: all(up(pooled)))
        assert set(engines[1].loaded) == {"x", "y"}


async def test_an_engine_that_holds_what_nobody_told_it_is_given_what_it_should_hold():
    engine = FakeEngine()
    engine.full = None
    async with pool(engine) as pooled:
        await pooled.ready()
        assert engine.full == weights()


async def test_an_engine_that_takes_no_other_weights_has_its_own(monkeypatch):
    engine = FakeEngine()
    engine.full = None

    async def replace(weights):
        raise refusal("weights_unavailable")

    monkeypatch.setattr(engine, "replace", replace)
    async with pool(engine) as pooled, pooled.session(BASE) as session:
        await session.group().sample(asked())


async def test_an_engine_that_does_not_take_an_adapter_any_more_stays_out_and_says_why():
    engines = [FakeEngine(), FakeEngine()]
    async with pool(*engines) as pooled:
        await pooled.add(adapter("x"))
        engines[1].refuses = {"x": refusal()}
        engines[1].restart()
        await eventually(lambda: not up(pooled)[1] and "does not fit" in (pooled.figures()[1].detail or ""))
        engines[1].refuses = {}
        await eventually(lambda: all(up(pooled)))


async def test_attempts_become_rarer(monkeypatch):
    """After 0.05 + 0.01, 0.02, 0.04, … seconds, and then every 0.25."""
    engine, naps, attempts = FakeEngine(), [], []
    connect, nap = engine.connect, Replica.nap

    async def timed():
        attempts.append(time.monotonic())
        await connect()

    async def noted(self, seconds):
        if self.engine is engine:  # other pools live in this process
            naps.append(seconds)
        await nap(self, seconds)

    monkeypatch.setattr(engine, "connect", timed)
    monkeypatch.setattr(Replica, "nap", noted)
    engine.kill()
    async with pool(engine, retry_first_s=0.01, retry_last_s=0.2):
        await eventually(lambda: len(attempts) > 7)
    assert naps[:7] == [0.01, 0.02, 0.04, 0.08, 0.16, 0.2, 0.2]
    pauses = [later - earlier for earlier, later in pairwise(attempts)]
    assert all(pause > 0.049 + nap for pause, nap in zip(pauses, naps, strict=False))


async def test_the_pool_ends_whatever_its_engines_do():
    hung, dead, well = FakeEngine(), FakeEngine(), FakeEngine(seconds=600)
    dead.kill()
    async with asyncio.timeout(60):
        async with pool(hung, dead, well) as pooled:
            hung.hangs = {"holds", "alive"}
            replacing = asyncio.create_task(pooled.replace(weights("new"), lambda: None))
            await asyncio.sleep(0.05)
    with pytest.raises((asyncio.CancelledError, Unavailable)):
        await replacing


async def test_engines_are_given_what_an_earlier_run_of_the_teacher_had_in_them():
    engines = [FakeEngine(), FakeEngine()]
    engines[1].full = weights("earlier")
    async with pool(*engines, wanted=weights("earlier")) as pooled:
        async with pooled.session(Held(weights("earlier"))) as session:
            assert (await session.group().sample(asked())).finish_reason == "earlier/"
        await pooled.replace(weights(), lambda: None)
    assert [engine.asked["replace"] for engine in engines] == [2, 1]


async def test_one_late_answer_under_load_ends_no_sample():
    """Neither of the look at a busy engine nor of the attempt to connect to one that failed a single sample."""
    engine = FakeEngine(seconds=0.4)
    async with pool(engine) as pooled, pooled.session(BASE) as session:
        group = session.group()
        one, other = (asyncio.create_task(group.sample(asked(seed=seed))) for seed in (1, 2))
        await asyncio.sleep(0.02)
        engine.late = {"alive"}
        await eventually(lambda: not engine.late)
        await asyncio.sleep(0.03)
        assert up(pooled) == [True]
        engine.late = {"connect"}
        next(future for future, request in engine.inside.items() if request.seed == 1).set_exception(
            Unavailable("reset")
        )
        with pytest.raises(Unavailable, match="reset"):
            await one
        assert isinstance(await other, Sample)
        assert not engine.late
        await eventually(lambda: all(up(pooled)))
