"""Which engine a question goes to, and when it goes to none."""

from __future__ import annotations

import asyncio
import time

import pytest
from plugins.fake_engine import FakeEngine, adapter, asked, eventually, pool, weights

from rlt_client.errors import ItemError, Overloaded, Unavailable
from rlt_service.metrics import Metrics
from rlt_teacher_server.engine.base import Gauges
from rlt_teacher_server.engine.pool import Held, PolicyReplaced, pressure
from rlt_teacher_server.metrics import TeacherMetrics

BASE = Held(weights())


async def test_a_question_s_samples_go_to_one_engine():
    engines = [FakeEngine(seconds=0.02) for _ in range(3)]
    async with pool(*engines) as pooled, pooled.session(BASE) as session:
        for _ in range(2):  # the second time after the first
            group = session.group()
            await asyncio.gather(*(group.sample(asked(seed=seed)) for seed in range(5)))
            await group.sample(asked())
    assert sorted(engine.asked["sample"] for engine in engines) == [0, 6, 6]


async def test_questions_are_spread_by_what_is_under_way():
    """A question of 6 samples, then six of one: the other engine takes them all."""
    one, other = engines = [FakeEngine(seconds=0.2) for _ in range(2)]
    async with pool(*engines) as pooled, pooled.session(BASE) as session, asyncio.TaskGroup() as tasks:
        large = session.group()
        for _ in range(6):
            tasks.create_task(large.sample(asked()))
        await asyncio.sleep(0.02)
        for _ in range(6):
            tasks.create_task(session.group().sample(asked()))
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        assert sorted(len(engine.inside) for engine in engines) == [6, 6]
    assert one.asked["sample"] == other.asked["sample"] == 6


async def test_idle_engines_take_turns():
    engines = [FakeEngine() for _ in range(3)]
    # looked at once: a look that comes late on a busy machine takes an engine out for a moment
    async with pool(*engines, check_s=60.0) as pooled, pooled.session(BASE) as session:
        for _ in range(9):
            await session.group().sample(asked())
    assert [engine.asked["sample"] for engine in engines] == [3, 3, 3]


async def test_equally_busy_engines_are_told_apart_by_their_gauges(monkeypatch):
    """Somebody else uses the first one."""
    busy, idle = FakeEngine(), FakeEngine()

    async def others():
        return Gauges(7, 3)

    monkeypatch.setattr(busy, "gauges", others)
    async with pool(busy, idle) as pooled:
        await pooled.infos()
        async with pooled.session(BASE) as session:
            for _ in range(4):
                await session.group().sample(asked())
    assert (busy.asked["sample"], idle.asked["sample"]) == (0, 4)


async def test_the_adapter_of_a_policy_is_named_to_the_engine():
    engine = FakeEngine()
    async with pool(engine) as pooled:
        await pooled.add(adapter("x"))
        async with pooled.session(Held(weights(), adapter("x"))) as session:
            assert (await session.group().sample(asked())).finish_reason == "base/x"


@pytest.mark.parametrize("held", [Held(weights("other")), Held(weights(), adapter("nobody"))])
async def test_what_no_engine_holds(held):
    async with pool(FakeEngine()) as pooled:
        with pytest.raises(PolicyReplaced):
            async with pooled.session(held):
                pass


async def test_a_request_of_its_own_fault_takes_no_engine_out():
    engines = [FakeEngine(max_model_len=100), FakeEngine(max_model_len=100)]
    async with pool(*engines) as pooled, pooled.session(BASE) as session:
        with pytest.raises(ItemError) as caught:
            await session.group().sample(asked(max_tokens=500))
        assert caught.value.problem.type == "context_overflow"
        assert all(info.up for info in await pooled.infos())


async def test_limits_are_those_of_the_smallest():
    late = FakeEngine(max_model_len=50)
    late.kill()
    async with pool(FakeEngine(max_model_len=90), FakeEngine(max_model_len=70), late) as pooled:
        assert (await pooled.limits()).max_model_len == 70
        late.start()
        await eventually(lambda: all(info.up for info in pooled.figures()))
        assert (await pooled.limits()).max_model_len == 50


# Back-pressure


def waiting(count):
    async def gauges():
        return Gauges(8, count)

    return gauges


async def test_long_queues_everywhere_are_refused_before_they_grow(monkeypatch):
    engines = [FakeEngine(), FakeEngine()]
    for engine, count in zip(engines, (11, 40), strict=True):
        monkeypatch.setattr(engine, "gauges", waiting(count))
    async with pool(*engines, max_waiting=10) as pooled:
        await pooled.infos()
        with pytest.raises(Overloaded, match="11 samples") as caught:
            async with pooled.session(BASE):
                pass
        assert 1 <= caught.value.retry_after <= 60
        monkeypatch.setattr(engines[0], "gauges", waiting(10))
        await eventually(lambda: pooled.figures()[0].waiting == 10)  # read again, as somebody asked
        async with pooled.session(BASE) as session:
            await session.group().sample(asked())


async def test_a_gauge_that_cannot_be_read_refuses_nobody(monkeypatch):
    full, silent = FakeEngine(), FakeEngine()
    monkeypatch.setattr(full, "gauges", waiting(99))

    async def gauges():
        raise Unavailable("no metrics here")

    monkeypatch.setattr(silent, "gauges", gauges)
    async with pool(full, silent, max_waiting=10) as pooled:
        infos = await pooled.infos()
        assert [(info.running, info.waiting) for info in infos] == [(8, 99), (None, None)]
        async with pooled.session(BASE) as session:
            await session.group().sample(asked())
        assert all(info.up for info in infos)


async def test_samples_that_wait_before_the_engine_s_door_wait_too():
    """Twelve are inside and eight run: whatever the engine calls them, four wait."""
    engine = FakeEngine(seconds=0.3)

    async def gauges():
        return Gauges(8, 0)

    engine.gauges = gauges  # type: ignore[method-assign]
    async with pool(engine, max_waiting=3) as pooled, pooled.session(BASE) as session, asyncio.TaskGroup() as tasks:
        group = session.group()
        for _ in range(12):
            tasks.create_task(group.sample(asked()))
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded, match="4 samples"):
            async with pooled.session(BASE):
                pass


async def test_gauges_are_read_only_while_there_is_traffic():
    engine = FakeEngine()
    async with pool(engine, check_s=0.001):
        await asyncio.sleep(0.1)
        assert engine.asked["gauges"] == 0


async def test_gauges_are_read_once_in_a_while_however_many_ask():
    engine = FakeEngine(seconds=0.01)
    began = time.monotonic()
    async with pool(engine, check_s=0.1) as pooled:
        for _ in range(30):
            async with pooled.session(BASE) as session:
                await session.group().sample(asked())
        took = time.monotonic() - began
        assert 1 <= engine.asked["gauges"] <= took / 0.1


async def test_each_engine_s_figures():
    engines = [FakeEngine(seconds=0.2), FakeEngine()]
    engines[1].kill()
    async with pool(*engines) as pooled, pooled.session(BASE) as session, asyncio.TaskGroup() as tasks:
        group = session.group()
        for _ in range(10):
            tasks.create_task(group.sample(asked()))
        await asyncio.sleep(0.05)
        one, two = await pooled.infos()
        assert (one.name, one.up, one.samples, one.running, one.waiting) == ("a", True, 10, 8, 2)
        assert (one.weights, one.version, one.detail) == ("base", "fake 1", None)
        assert (two.up, two.samples, two.running, two.version) == (False, 0, None, None)
        assert "connection refused" in two.detail


async def test_what_is_counted():
    metrics = Metrics()
    counted = TeacherMetrics(metrics)
    engines = [FakeEngine(seconds=0.1), FakeEngine(seconds=0.1)]
    async with pool(*engines, events=counted) as pooled, pooled.session(BASE) as session:
        counted.watch_engines(pooled.figures)
        samples = [asyncio.create_task(session.group().sample(asked())) for _ in range(2)]
        await asyncio.sleep(0.02)
        engines[0].kill()
        await asyncio.gather(*samples)
        page = metrics.render().decode()
    for line in (
        'rlt_teacher_engine_up{engine="a"} 0.0',
        'rlt_teacher_engine_up{engine="b"} 1.0',
        'rlt_teacher_engine_samples{engine="b"} 0.0',
        'rlt_teacher_engine_running{engine="a"} NaN',
        'rlt_teacher_engine_failures_total{engine="a"} 1.0',
        'rlt_teacher_samples_restarted_total{engine="a"} 1.0',
    ):
        assert line in page
    assert 'rlt_teacher_engine_waiting{engine="b"} 0.0' in page


async def test_who_is_refused_is_told_when_to_come_back(monkeypatch):
    """50 wait, of which 30 are too many; 10 were finished in the last second: 3 s."""
    engine, now, inside = FakeEngine(), 1000.0, 0
    monkeypatch.setattr(engine, "gauges", waiting(50))
    monkeypatch.setattr(pressure.time, "monotonic", lambda: now)
    queue = pressure.Queue(engine, lambda: inside)
    await queue.read(100)
    assert queue.seconds_until(20) == 1.0  # nothing is known yet
    now += 1
    await queue.read(110)
    assert queue.seconds_until(20) == pytest.approx(3.0)
    assert queue.seconds_until(49) == 1.0
    now += 1
    await queue.read(110)  # 0.8 · 10 + 0.2 · 0 = 8 a second
    assert queue.seconds_until(10) == pytest.approx(5.0)
    inside = 40
    await queue.read(110)
    inside = 10  # 30 have left since
    assert queue.waiting == 20
    now += 10
    assert (queue.gauges, queue.waiting) == (None, 0)  # what is so old says nothing
