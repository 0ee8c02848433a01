"""The embedded engine's own matters: what runs together, callers that go, a batch that fails, its end."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlt_client.errors import ItemError, Unavailable
from rlt_teacher_server.engine import transformers as embedded
from rlt_teacher_server.engine.base import FullWeights, SampleRequest
from rlt_teacher_server.engine.batching import Batches
from rlt_teacher_server.engine.decoding import Decoder, Row
from rlt_teacher_server.engine.transformers import TransformersEngine
from rlt_teacher_server.engine.weights import Loader
from rlt_teacher_server.model import load_model

LONG = 200


@pytest.fixture(scope="module")
def codec(tiny_model):
    return load_model(str(tiny_model)).codec


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def decoder(model, codec):
    return Decoder(model, codec.decode)


class Watched(Decoder):
    """A decoder that notes what it is asked: rows that started together, and rows of each step. `hook` may fail or
    wait before either. Of the steps after `until` it waits for `go_on`: nothing runs out while a test looks."""

    def __init__(self, model, decode, hook=lambda rows: None):
        super().__init__(model, decode)
        self.hook = hook
        self.started = []
        self.steps = []
        self.until = None
        self.third_step = threading.Event()
        self.go_on = threading.Event()

    def start(self, rows):
        self.started.append(len(rows))
        self.hook(rows)
        return super().start(rows)

    def sample(self, batch):
        self.steps.append(len(batch.rows))
        if len(self.steps) == 3:
            self.third_step.set()
        if self.until is not None and len(self.steps) >= self.until:
            assert self.go_on.wait(60)
        self.hook(batch.rows)
        super().sample(batch)


@pytest.fixture
def watched(model, codec):
    return Watched(model, codec.decode)


class Given(Loader):
    """Loads nothing: the decoder is given."""

    def __init__(self, decoder):
        super().__init__(decoder.decode, dtype="auto", device="cpu")
        self._decoder = decoder

    def first(self, folder):
        return self._decoder


@pytest.fixture
def engine_of(tiny_model):
    @asynccontextmanager
    async def run(decoder, **given):
        weights = FullWeights("sha256:0", tiny_model)
        async with TransformersEngine(Given(decoder), weights, **({"max_model_len": 256} | given)) as engine:
            yield engine

    return run


def ask(seed=0, **given):
    return SampleRequest(**({"prompt_token_ids": [1, 2, 3], "max_tokens": 8, "seed": seed} | given))


def ask_long(seed=0, **given):
    return ask(seed, max_tokens=LONG, temperature=2.0, **given)


async def third_step(decoder):
    assert await asyncio.to_thread(decoder.third_step.wait, 60)


async def reached(decoder, step):
    """It is about to do this step."""
    async with asyncio.timeout(60):
        while len(decoder.steps) < step:  # noqa: ASYNC110 another thread counts
            await asyncio.sleep(0.002)


async def test_what_comes_together_runs_together(engine_of, watched):
    async with engine_of(watched) as engine:
        await asyncio.gather(*(engine.sample(ask(seed)) for seed in range(20)))
    assert watched.started == [20]
    assert watched.steps == [20] * 8


async def test_new_requests_join_those_under_way(engine_of, watched):
    watched.until = 3
    async with engine_of(watched) as engine:
        long = asyncio.create_task(engine.sample(ask_long(1)))
        await third_step(watched)
        joining = asyncio.create_task(engine.sample(ask(2)))
        await asyncio.sleep(0)
        watched.go_on.set()
        short, whole = await asyncio.gather(joining, long)
        assert len(short.token_ids) == 8
        assert len(whole.token_ids) == LONG
        assert short.finished < whole.finished
    assert len(watched.steps) == LONG, "the long one was never held up"
    assert watched.steps.count(2) == 8


async def test_what_joins_and_what_is_joined_give_what_they_give_alone(engine_of, watched, decoder):
    """Prompts of 2 to 20 tokens, each coming while all before it still run, or after some of them have left."""
    requests = [ask(i, max_tokens=60 - 5 * i, prompt_token_ids=list(range(1, 3 + 2 * i))) for i in range(10)]
    hold = threading.Semaphore(0)
    watched.hook = lambda rows: rows[0].ids and hold.acquire(timeout=60)
    async with engine_of(watched) as engine:
        tasks = []
        for place, request in enumerate(requests):
            tasks.append(asyncio.create_task(engine.sample(request)))
            await asyncio.sleep(0)
            hold.release(8 if place else 7)  # the first step of all needs none
            await reached(watched, 8 * (place + 1) + 1)
        hold.release(1000)
        together = await asyncio.gather(*tasks)
    assert len(watched.started) > 3, "they did not come one after the other"
    assert max(watched.steps) > 2, "they did not run together"
    for request, sample in zip(requests, together, strict=True):
        [alone] = run(decoder, request)
        assert sample.token_ids == alone.ids
        assert sample.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


async def test_what_runs_at_once_has_a_limit_and_a_larger_request_runs_alone(engine_of, watched):
    """Each request costs 3 + 8 tokens; the last one 3 + 60."""
    async with engine_of(watched, batch_tokens=44) as engine:
        await asyncio.gather(*(engine.sample(ask(seed)) for seed in range(6)), engine.sample(ask(max_tokens=60)))
    assert watched.started == [4, 2, 1]
    assert watched.steps == [4] * 8 + [2] * 8 + [1] * 60


async def test_nobody_overtakes_a_request_that_waits_for_room(engine_of, watched):
    """11 of 44 tokens are in use; the next costs 43 and waits; the one after it would fit, and waits too."""
    async with engine_of(watched, batch_tokens=44) as engine:
        first = asyncio.create_task(engine.sample(ask()))
        await asyncio.sleep(0)
        large = asyncio.create_task(engine.sample(ask(max_tokens=40)))
        small = asyncio.create_task(engine.sample(ask(max_tokens=1)))
        samples = await asyncio.gather(first, large, small)
    assert watched.started == [1, 1, 1]
    assert [len(sample.token_ids) for sample in samples] == [8, 40, 1]
    assert samples[2].started >= samples[1].finished


async def test_a_model_whose_state_cannot_be_joined_runs_one_batch_after_another(engine_of, watched, decoder):
    watched.joins = False
    async with engine_of(watched) as engine:
        long = asyncio.create_task(engine.sample(ask(1, max_tokens=40)))
        await third_step(watched)
        short = await engine.sample(ask(2))
        assert long.done()
    assert watched.steps == [1] * 48
    assert short.token_ids == run(decoder, ask(2))[0].ids


async def test_gauges_tell_who_runs_and_who_waits(engine_of, watched):
    watched.until = 3
    async with engine_of(watched, batch_tokens=2 * (3 + LONG)) as engine:
        assert _figures(await engine.gauges()) == (0, 0)
        tasks = [asyncio.create_task(engine.sample(ask_long(seed))) for seed in range(5)]
        await third_step(watched)
        assert _figures(await engine.gauges()) == (2, 3)
        tasks[4].cancel()
        await asyncio.sleep(0)
        assert _figures(await engine.gauges()) == (2, 2)
        watched.go_on.set()
        await asyncio.gather(*tasks[:4])
        assert _figures(await engine.gauges()) == (0, 0)


async def test_a_cancelled_sample_leaves_at_the_next_step(engine_of, watched):
    """Of three, one goes; a short one then joins the other two, and three steps later it has left too."""
    watched.until = 3
    async with engine_of(watched) as engine:
        gone, *others = (asyncio.create_task(engine.sample(ask_long(seed))) for seed in range(3))
        await third_step(watched)
        assert _figures(await engine.gauges()) == (3, 0)
        gone.cancel()
        joining = asyncio.create_task(engine.sample(ask(max_tokens=3)))
        await asyncio.sleep(0)
        watched.go_on.set()
        short, *long = await asyncio.gather(joining, *others)
        assert all(short.finished < sample.finished for sample in long)
        assert _figures(await engine.gauges()) == (0, 0)
    left = watched.steps[3:]  # the third step was under way
    assert set(left) == {2, 3}
    assert left.count(3) <= 3


async def test_a_batch_ends_when_all_its_callers_have_gone(engine_of, watched):
    watched.until = 3
    async with engine_of(watched) as engine:
        tasks = [asyncio.create_task(engine.sample(ask_long(seed))) for seed in range(4)]
        await third_step(watched)
        for task in tasks:
            task.cancel()
        watched.go_on.set()
        await engine.sample(ask())
        assert _figures(await engine.gauges()) == (0, 0)
    assert len(watched.steps) < 40


async def test_a_failed_batch_fails_its_own_callers_only(engine_of, watched):
    def once(rows):
        watched.hook = lambda rows: None
        raise torch.OutOfMemoryError("CUDA out of memory")

    watched.hook = once
    async with engine_of(watched) as engine:
        with pytest.raises(ItemError) as caught:
            await engine.sample(ask())
        assert caught.value.problem.type == "out_of_memory"
        assert (await engine.sample(ask())).token_ids


async def test_a_prompt_that_cannot_be_read_leaves_those_under_way_alone(engine_of, watched):
    def fail(rows):
        if not rows[0].ids and rows[0].request.seed == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    watched.hook = fail
    async with engine_of(watched) as engine:
        long = asyncio.create_task(engine.sample(ask_long(1)))
        await third_step(watched)
        with pytest.raises(ItemError):
            await engine.sample(ask(2))
        assert len((await long).token_ids) == LONG


async def test_any_other_failure_is_named_too(engine_of, watched):
    def fail(rows):
        raise RuntimeError("cuBLAS is not well")

    watched.hook = fail
    async with engine_of(watched) as engine:
        with pytest.raises(ItemError) as caught:
            await engine.sample(ask())
    assert (caught.value.problem.type, caught.value.problem.detail) == ("engine_failed", "RuntimeError")


async def test_what_is_not_finished_at_the_end_is_unavailable(engine_of, watched):
    watched.until = 3
    async with engine_of(watched, batch_tokens=1) as engine:
        tasks = [asyncio.create_task(engine.sample(ask_long(seed))) for seed in range(3)]
        await third_step(watched)
        tasks[0].add_done_callback(lambda _: watched.go_on.set())
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert len(watched.steps) < 40
    with pytest.raises(Unavailable):
        await engine.sample(ask())


async def test_a_decoder_that_hangs_is_not_alive(engine_of, watched, monkeypatch):
    inside, gate = threading.Event(), threading.Event()
    watched.hook = lambda rows: (inside.set(), gate.wait(60))
    async with engine_of(watched) as engine:
        task = asyncio.create_task(engine.sample(ask()))
        assert await asyncio.to_thread(inside.wait, 60)
        await engine.alive()
        monkeypatch.setattr(embedded, "STUCK_S", 0.0)
        with pytest.raises(Unavailable):
            await engine.alive()
        monkeypatch.undo()
        gate.set()
        await task
        await engine.alive()


async def test_a_model_that_cannot_be_loaded_stops_the_start(engine_of, watched, monkeypatch):
    def load(self, folder):
        raise OSError("no weights")

    monkeypatch.setattr(Given, "first", load)
    with pytest.raises(OSError, match="no weights"):
        async with engine_of(watched):
            pass


# Tokens as they are sampled


async def test_tokens_are_told_one_by_one(engine_of, watched):
    told = []
    async with engine_of(watched) as engine:
        sample = await engine.sample(ask_long(3), lambda ids: told.append(list(ids)))
    assert [len(ids) for ids in told] == [1] * LONG
    assert [token for [token] in told] == sample.token_ids


async def test_a_step_wakes_the_event_loop_once_and_only_for_who_listens(engine_of, watched, monkeypatch):
    calls = []
    async with engine_of(watched) as engine:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (calls.append(args), wake(*args))[1])
        await asyncio.gather(*(engine.sample(ask(seed)) for seed in range(10)))
        deaf = sum(args[0] is embedded._deliver for args in calls)
        await loop.run_in_executor(engine._thread, int)  # its thread may still be looking for more to do
        calls.clear()
        await asyncio.gather(*(engine.sample(ask(seed), lambda ids: None) for seed in range(10)))
        heard = sum(args[0] is embedded._deliver for args in calls)
    assert (deaf, heard) == (1, 8)


async def test_a_listener_that_fails_ends_its_own_sample_only(engine_of, watched):
    def fail(ids):
        raise ValueError("a bad listener")

    async with engine_of(watched) as engine:
        bad, good = await asyncio.gather(
            engine.sample(ask(1), fail), engine.sample(ask(2), lambda ids: None), return_exceptions=True
        )
    assert isinstance(bad, ValueError)
    assert len(good.token_ids) == 8


def _figures(gauges):
    return gauges.running, gauges.waiting


# The decoder


def run(decoder, *requests):
    rows = [Row(request, decoder) for request in requests]
    batches = Batches()
    batches.turn(rows)
    while batches.size:
        batches.turn(())
    return rows


def test_prompts_of_all_lengths_share_a_batch(decoder):
    requests = [ask(seed, prompt_token_ids=list(range(1, 2 + 3 * seed))) for seed in range(6)]
    together = run(decoder, *requests, *requests)
    for i, request in enumerate(requests):
        [alone] = run(decoder, request)
        for row in (together[i], together[i + len(requests)]):
            assert row.ids == alone.ids
            assert row.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_logits_that_are_no_numbers_end_a_row(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.get_input_embeddings().weight.data[5] = torch.nan
    [row] = run(Decoder(model, str), ask(prompt_token_ids=[5, 6]))
    assert isinstance(row.ended, ItemError)
    assert row.ended.problem.type == "non_finite_logits"


def test_a_stop_string_may_lie_across_tokens(decoder, codec):
    [free] = run(decoder, ask(temperature=0.0, max_tokens=6))
    first, second = codec.tokens(free.ids[:2])
    [stopped] = run(decoder, ask(temperature=0.0, max_tokens=6, stop=("never", f"{first} {second}")))
    assert stopped.ids == free.ids[:2]
    assert stopped.ended == "stop"
