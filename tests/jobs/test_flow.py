"""Additive increase, multiplicative decrease, with a clock of our own."""

from __future__ import annotations

import asyncio

import pytest

from rlt_jobs.builds.flow import LONGEST_PAUSE, SHORTEST_PAUSE, Flow


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


async def test_until_it_is_refused_a_round_of_accepted_requests_doubles_it() -> None:
    flow = Flow(4, 64)
    for _ in range(4):
        async with flow.turn() as turn:
            turn.accepted()
    assert flow.limit == 8


async def test_after_a_refusal_a_full_round_of_accepted_requests_adds_one() -> None:
    clock = Clock()
    flow = Flow(8, 64, now=clock)
    async with flow.turn() as turn:
        clock.time += 1
        turn.refused(None)
    clock.time += 1
    for _ in range(4):
        async with flow.turn() as turn:
            turn.accepted()
    # 4 → 4 + 1/4 → + 1/4.25 → + 1/4.485 → + 1/4.708 = 4.92
    assert 4.9 < flow.limit < 5.0


async def test_it_never_grows_beyond_the_most() -> None:
    flow = Flow(9, 2)
    async with flow.turn() as turn:
        turn.accepted()
    assert flow.limit == 2


async def test_refusals_of_one_burst_halve_it_once() -> None:
    clock = Clock()
    flow = Flow(16, 64, now=clock)
    async with flow.turn() as first, flow.turn() as second:
        clock.time += 1
        first.refused(None)
        second.refused(None)  # sent before the cut: the same burst
    assert flow.limit == 8
    clock.time += 1
    async with flow.turn() as later:
        clock.time += 1
        later.refused(None)
    assert flow.limit == 4


async def test_it_never_falls_below_one() -> None:
    clock = Clock()
    flow = Flow(1, 64, now=clock)
    async with flow.turn() as turn:
        clock.time += 1
        turn.refused(None)
    assert flow.limit == 1


async def test_no_more_run_at_once_than_the_limit() -> None:
    flow = Flow(3, 3)
    most = 0

    async def ask() -> None:
        nonlocal most
        async with flow.turn():
            most = max(most, flow.busy)
            await asyncio.sleep(0.001)

    await asyncio.gather(*(ask() for _ in range(20)))
    assert (most, flow.busy) == (3, 0)


async def test_retry_after_is_waited_for_within_reason() -> None:
    clock = Clock()
    flow = Flow(2, 2, now=clock)
    for asked, waited in ((None, SHORTEST_PAUSE), (7.0, 7.0), (1e6, LONGEST_PAUSE)):
        clock.time += 1000
        async with flow.turn() as turn:
            turn.refused(asked)
        opens = asyncio.create_task(_enters(flow))
        await asyncio.sleep(0)
        assert not opens.done()
        opens.cancel()
        clock.time += waited
        await asyncio.wait_for(_enters(flow), 60)


async def _enters(flow: Flow) -> None:
    async with flow.turn():
        pass


async def test_a_place_is_given_back_by_whoever_is_cancelled() -> None:
    flow = Flow(1, 1)
    holder = asyncio.create_task(_hold(flow))
    await asyncio.sleep(0)
    holder.cancel()
    await asyncio.wait_for(_enters(flow), 60)
    assert flow.busy == 0


async def _hold(flow: Flow) -> None:
    async with flow.turn():
        await asyncio.sleep(60)


async def test_places_are_given_in_the_order_of_asking() -> None:
    flow, order = Flow(1, 1), []

    async def ask(number: int) -> None:
        async with flow.turn():
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*map(ask, range(50)))
    assert order == list(range(50))


async def test_who_is_cancelled_while_a_place_is_handed_over_gives_it_on() -> None:
    flow = Flow(1, 1)
    async with flow.turn():
        first, second = (asyncio.create_task(_enters(flow)) for _ in range(2))
        await asyncio.sleep(0)
    first.cancel()  # it has its place, and was not woken yet
    await asyncio.wait_for(second, 60)
    assert flow.busy == 0


async def test_it_is_idle_when_a_place_is_free_that_nobody_waits_for() -> None:
    flow = Flow(2, 2)
    holders = [asyncio.create_task(_hold(flow)) for _ in range(3)]
    await asyncio.sleep(0)
    idle = asyncio.create_task(flow.idle())
    await asyncio.sleep(0)
    holders[0].cancel()  # its place is the third's
    await asyncio.sleep(0.01)
    assert not idle.done()
    holders[1].cancel()
    await asyncio.wait_for(idle, 60)
    holders[2].cancel()


async def test_closed_it_turns_away_who_waits_and_opens_again() -> None:
    flow = Flow(1, 4)
    holder = asyncio.create_task(_hold(flow))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(_enters(flow))
    await asyncio.sleep(0)
    flow.close(KeyError("ill"))
    with pytest.raises(KeyError):
        await waiting
    with pytest.raises(KeyError):
        await _enters(flow)
    holder.cancel()
    flow.open(careful=True)
    await asyncio.wait_for(_enters(flow), 60)
    assert flow.limit == 1
