"""The same thing asked for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from rlt_reward_server.scheduler import Shared


class Kitchen:
    """Counts what is computed. While `gate` is closed nothing is finished."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.hits: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        defaults: dict[str, Any] = {"seconds": 10, "max_weight": 3, "weigh": lambda _: 1}
        self.shared: Shared[str, str] = Shared(**(defaults | options), on_hit=self.hits.append, clock=lambda: self.now)

    def making(self, key: str) -> Callable[[], Coroutine[Any, Any, str]]:
        async def make() -> str:
            self.begun.append(key)
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append(key)
                raise
            if key == "bad":
                raise ValueError(key)
            return key.upper()

        return make

    async def ask(self, *keys: str) -> list[str]:
        with self.shared.session() as session:
            for key in keys:
                session.start(key, self.making(key))
            return await session.results(keys)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_asked_again_it_is_not_made_again() -> None:
    kitchen = Kitchen()
    assert await kitchen.ask("a") == ["A"]
    assert await kitchen.ask("a", "b") == ["A", "B"]
    assert kitchen.begun == ["a", "b"]
    assert kitchen.hits == ["kept"]


async def test_at_the_same_time_it_is_made_once() -> None:
    kitchen = Kitchen()
    assert await asyncio.gather(kitchen.ask("a"), kitchen.ask("a"), kitchen.ask("b", "a")) == [["A"], ["A"], ["B", "A"]]
    assert kitchen.begun == ["a", "b"]
    assert kitchen.hits == ["joined", "joined"]


async def test_twice_in_one_request_is_no_hit() -> None:
    kitchen = Kitchen()
    assert await kitchen.ask("a", "a") == ["A", "A"]
    assert (kitchen.begun, kitchen.hits) == (["a"], [])


async def test_it_goes_on_while_somebody_waits() -> None:
    kitchen = Kitchen()
    kitchen.gate.clear()
    first, second = (asyncio.create_task(kitchen.ask("a")) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert kitchen.cancelled == []
    kitchen.gate.set()
    assert await second == ["A"]
    assert kitchen.begun == ["a"]


async def test_it_ends_when_the_last_one_leaves_and_nobody_joins_what_ends() -> None:
    kitchen = Kitchen()
    kitchen.gate.clear()
    tasks = [asyncio.create_task(kitchen.ask("a")) for _ in range(2)]
    await settle()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    again = asyncio.create_task(kitchen.ask("a"))
    await settle()
    kitchen.gate.set()
    assert await again == ["A"]
    assert (kitchen.begun, kitchen.cancelled) == (["a", "a"], ["a"])


async def test_a_failure_is_everyones_and_is_not_kept() -> None:
    kitchen = Kitchen()
    kitchen.gate.clear()
    tasks = [asyncio.create_task(kitchen.ask(*keys)) for keys in (["bad"], ["slow", "bad"])]
    await settle()
    kitchen.gate.set()
    for task in tasks:
        with pytest.raises(ValueError, match="bad"):
            await task
    with pytest.raises(ValueError, match="bad"):
        await kitchen.ask("bad")
    assert kitchen.begun.count("bad") == 2


async def test_a_failure_does_not_wait_for_the_rest() -> None:
    kitchen = Kitchen()

    async def fail() -> str:
        raise ValueError("at once")

    kitchen.gate.clear()
    with kitchen.shared.session() as session:
        session.start("slow", kitchen.making("slow"))
        session.start("bad", fail)
        with pytest.raises(ValueError, match="at once"):
            await asyncio.wait_for(session.results(["slow", "bad"]), 60)
    await settle()
    assert kitchen.cancelled == ["slow"]


async def test_results_are_kept_for_a_time() -> None:
    kitchen = Kitchen()
    await kitchen.ask("a")
    kitchen.now = 9.9
    await kitchen.ask("a", "b")
    kitchen.now = 10.0
    await kitchen.ask("a", "b")
    assert kitchen.begun == ["a", "b", "a"]


async def test_old_results_go_without_being_asked_for() -> None:
    kitchen = Kitchen()
    await kitchen.ask("a", "b")
    kitchen.now = 20.0
    await kitchen.ask("c")
    assert len(kitchen.shared) == 1


async def test_the_oldest_goes_when_there_are_too_many() -> None:
    kitchen = Kitchen(weigh=lambda value: {"A": 1, "B": 1, "C": 2, "HUGE": 4, "SECRET": None}[value])
    await kitchen.ask("a")
    await kitchen.ask("b")
    await kitchen.ask("c")
    await kitchen.ask("huge", "secret")
    kitchen.begun.clear()
    await kitchen.ask("b", "c")
    assert kitchen.begun == []
    await kitchen.ask("a", "huge", "secret")
    assert kitchen.begun == ["a", "huge", "secret"]


async def test_nothing_is_kept_where_the_time_is_0() -> None:
    kitchen = Kitchen(seconds=0)
    await kitchen.ask("a")
    await kitchen.ask("a")
    assert kitchen.begun == ["a", "a"]
    assert len(kitchen.shared) == 0


async def test_what_is_there_can_be_told_before_it_is_started() -> None:
    kitchen = Kitchen()
    await kitchen.ask("a")
    with kitchen.shared.session() as session:
        assert session.join("a")
        assert not session.join("b")
        session.start("b", kitchen.making("b"))
        assert await session.results(["a", "b"]) == ["A", "B"]
