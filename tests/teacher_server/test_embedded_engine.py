"""The embedded engine's own matters: batches, callers that go, a batch that fails, its end."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlt_client.errors import ItemError, Unavailable
from rlt_teacher_server.engine import transformers as embedded
from rlt_teacher_server.engine.base import SampleRequest
from rlt_teacher_server.engine.decoding import Decoder, Row
from rlt_teacher_server.engine.transformers import TransformersEngine
from rlt_teacher_server.model import load_model


@pytest.fixture(scope="module")
def decoder(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return Decoder(model, load_model(str(tiny_model)).codec.decode)


class Recorded:
    """The decoder, with a note of each batch; `hook` may fail or wait before a batch."""

    def __init__(self, decoder, hook=lambda rows: None):
        self._decoder = decoder
        self._hook = hook
        self.batches = []
        self.steps = 0
        self.third_step = threading.Event()

    def run(self, rows, on_step):
        self.batches.append(len(rows))
        self._hook(rows)

        def step():
            self.steps += 1
            if self.steps == 3:
                self.third_step.set()
            on_step()

        self._decoder.run(rows, step)


def engine_of(recorded, **given):
    return TransformersEngine(lambda: recorded, max_model_len=256, **given)


def ask(seed=0, **given):
    return SampleRequest(**({"prompt_token_ids": [1, 2, 3], "max_tokens": 8, "seed": seed} | given))


async def test_what_comes_together_runs_together(decoder):
    recorded = Recorded(decoder)
    async with engine_of(recorded) as engine:
        await asyncio.gather(*(engine.sample(ask(seed)) for seed in range(20)))
    assert recorded.batches == [20]


async def test_a_batch_has_a_limit_and_what_is_larger_runs_alone(decoder):
    """Each request costs 3 + 8 tokens; the last one 3 + 60."""
    recorded = Recorded(decoder)
    async with engine_of(recorded, batch_tokens=44) as engine:
        await asyncio.gather(*(engine.sample(ask(seed)) for seed in range(6)), engine.sample(ask(max_tokens=60)))
    assert recorded.batches == [4, 2, 1]


async def test_finished_samples_do_not_wait_for_long_ones(decoder):
    async with engine_of(Recorded(decoder)) as engine:
        long = asyncio.create_task(engine.sample(ask(1, max_tokens=200, temperature=2.0)))
        short = await engine.sample(ask(2, max_tokens=1))
        assert len(short.token_ids) == 1
        assert not long.done()
        assert len((await long).token_ids) == 200


async def test_a_batch_ends_when_all_its_callers_have_gone(decoder):
    recorded = Recorded(decoder)
    async with engine_of(recorded) as engine:
        tasks = [asyncio.create_task(engine.sample(ask(seed, max_tokens=250))) for seed in range(4)]
        await asyncio.to_thread(recorded.third_step.wait, 20)
        for task in tasks:
            task.cancel()
        await engine.sample(ask())
    assert recorded.steps < 100


async def test_a_failed_batch_fails_its_own_callers_only(decoder):
    def once(rows):
        if len(recorded.batches) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    recorded = Recorded(decoder, once)
    async with engine_of(recorded) as engine:
        with pytest.raises(ItemError) as caught:
            await engine.sample(ask())
        assert caught.value.problem.type == "out_of_memory"
        assert (await engine.sample(ask())).token_ids


async def test_any_other_failure_is_named_too(decoder):
    def fail(rows):
        raise RuntimeError("cuBLAS is not well")

    async with engine_of(Recorded(decoder, fail)) as engine:
        with pytest.raises(ItemError) as caught:
            await engine.sample(ask())
    assert (caught.value.problem.type, caught.value.problem.detail) == ("engine_failed", "RuntimeError")


async def test_what_is_not_finished_at_the_end_is_unavailable(decoder):
    recorded = Recorded(decoder)
    async with engine_of(recorded, batch_tokens=1) as engine:
        tasks = [asyncio.create_task(engine.sample(ask(seed, max_tokens=250))) for seed in range(3)]
        await asyncio.to_thread(recorded.third_step.wait, 20)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    with pytest.raises(Unavailable):
        await engine.sample(ask())


async def test_a_decoder_that_hangs_is_not_alive(decoder, monkeypatch):
    gate = threading.Event()
    async with engine_of(Recorded(decoder, lambda rows: gate.wait(10))) as engine:
        task = asyncio.create_task(engine.sample(ask()))
        await asyncio.sleep(0.05)
        await engine.alive()
        monkeypatch.setattr(embedded, "STUCK_S", 0.01)
        with pytest.raises(Unavailable):
            await engine.alive()
        monkeypatch.undo()
        gate.set()
        await task
        await engine.alive()


async def test_a_decoder_that_cannot_be_loaded_stops_the_start():
    def load():
        raise OSError("no weights")

    with pytest.raises(OSError, match="no weights"):
        async with TransformersEngine(load, max_model_len=256):
            pass


# The decoder


def run(decoder, *requests):
    ended = {}
    rows = [
        Row(request, lambda reason, i=i: ended.setdefault(i, reason), lambda: False)
        for i, request in enumerate(requests)
    ]
    decoder.run(rows)
    return rows, ended


def test_prompts_of_all_lengths_share_a_batch(decoder):
    requests = [ask(seed, prompt_token_ids=list(range(1, 2 + 3 * seed))) for seed in range(6)]
    together, _ = run(decoder, *requests, *requests)
    for i, request in enumerate(requests):
        [alone], _ = run(decoder, request)
        for row in (together[i], together[i + len(requests)]):
            assert row.ids == alone.ids
            assert row.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_logits_that_are_no_numbers_end_a_row(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.get_input_embeddings().weight.data[5] = torch.nan
    decoder = Decoder(model, str)
    _, ended = run(decoder, ask(prompt_token_ids=[5, 6]))
    assert isinstance(ended[0], ItemError)
    assert ended[0].problem.type == "non_finite_logits"


def test_a_stop_string_may_lie_across_tokens(decoder, tiny_model):
    codec = load_model(str(tiny_model)).codec
    [free], _ = run(decoder, ask(temperature=0.0, max_tokens=6))
    first, second = codec.tokens(free.ids[:2])
    [stopped], ended = run(decoder, ask(temperature=0.0, max_tokens=6, stop=("never", f"{first} {second}")))
    assert stopped.ids == free.ids[:2]
    assert ended == {0: "stop"}
