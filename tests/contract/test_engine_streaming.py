"""What every engine promises of samples that are watched, and of callers who leave."""

from __future__ import annotations

import asyncio
import time

import pytest

from rlt_client.errors import ItemError

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = {"prompt_token_ids": [3] * 8, "max_tokens": 240, "stop_token_ids": (), "temperature": 0.0}
"""The tiny model repeats itself to the end: the least sure of its tokens is three times as likely as the next."""


class Watch:
    def __init__(self):
        self.told = []
        self.begun = asyncio.Event()

    def __call__(self, ids):
        self.told.append(list(ids))
        self.begun.set()

    @property
    def ids(self):
        return [token for ids in self.told for token in ids]


async def settled(engine, running):
    """Whether its own gauge says so, soon."""
    until = time.monotonic() + 60
    while (await engine.gauges()).running != running:
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.01)
    return True


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"seed": 5, "temperature": 1.3, "top_p": 0.9, "top_k": 20},
        {"temperature": 0.0},
        {"stop_token_ids": (), "stop": ("#",)},
        {"max_tokens": 3},
        {"max_tokens": 1},
        {"stop_token_ids": (), "max_tokens": 60},
    ],
    ids=["usual", "cut", "greedy", "stop-string", "budget", "one-token", "end-of-turn"],
)
async def test_a_watched_sample_is_the_same(engine, ask, given):
    watch = Watch()
    unwatched = await engine.sample(ask(**given))
    watched = await engine.sample(ask(**given), watch)
    assert watched.token_ids == unwatched.token_ids
    assert watched.logprobs == pytest.approx(unwatched.logprobs, abs=1e-4)
    assert watched.finish_reason == unwatched.finish_reason
    assert watch.ids == watched.token_ids
    assert all(watch.told)


async def test_tokens_are_told_while_others_are_still_to_come(engine, ask):
    async def told_early():
        watch = Watch()
        sampling = asyncio.create_task(engine.sample(ask(**LONG), watch))
        await asyncio.wait_for(watch.begun.wait(), 60)
        early = len(watch.ids)
        sample = await sampling
        return early < len(sample.token_ids) and len(watch.told) > 1

    for _ in range(3):  # a process that stands still meanwhile hears of all at once
        if await told_early():
            return
    pytest.fail("all tokens were told at once, three times")


@pytest.mark.parametrize("wrong", [{"max_tokens": 300}, {"prompt_token_ids": [1, 10_000]}])
async def test_a_watched_request_that_cannot_be_done(engine, ask, wrong):
    watch = Watch()
    with pytest.raises(ItemError):
        await engine.sample(ask(**wrong), watch)
    assert watch.told == []


async def test_many_are_watched_at_once(engine, ask):
    watches = [Watch() for _ in range(100)]
    samples = await asyncio.gather(*(engine.sample(ask(seed=seed), watch) for seed, watch in enumerate(watches)))
    assert [sample.token_ids for sample in samples] == [watch.ids for watch in watches]


async def test_the_gauges_of_an_idle_engine(engine):
    assert await settled(engine, 0)
    assert (await engine.gauges()).waiting == 0


@pytest.mark.parametrize("watched", [True, False])
async def test_who_leaves_ends_the_work(engine, ask, same, watched):
    """By the engine's own gauge."""
    alone = await engine.sample(ask(seed=9))
    assert await settled(engine, 0)
    watch = Watch() if watched else None

    async def without_end(seed):
        while True:
            await engine.sample(ask(**LONG, seed=seed), watch)

    async def left():
        """Seconds from when six leave until their work has ended."""
        tasks = [asyncio.create_task(without_end(seed)) for seed in range(6)]
        assert await settled(engine, 6)
        began = time.monotonic()
        for task in tasks:
            task.cancel()
        assert await settled(engine, 0)
        seconds = time.monotonic() - began
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        return seconds

    for _ in range(3):  # a machine may stand still for as long
        if await left() < 5:
            break
    else:
        pytest.fail("the work of those who left went on, three times")
    assert same(alone, await engine.sample(ask(seed=9)))
