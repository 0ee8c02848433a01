"""What every engine promises (`rlt_teacher_server.engine.base`), asked of the embedded one and of a real vLLM."""

from __future__ import annotations

import asyncio
import math

import pytest

from rlt_client.errors import ItemError
from rlt_teacher_server.engine.base import Sample, SampleRequest

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_ids_and_logprobs_come_in_pairs(engine, ask):
    sample = await engine.sample(ask())
    assert len(sample.token_ids) == len(sample.logprobs) > 0
    assert all(value <= 0 and math.isfinite(value) for value in sample.logprobs)
    assert sample.enqueued <= sample.started <= sample.finished


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
async def test_logprobs_are_of_the_distribution_sampled_from(engine, ask, reference, prompt, temperature):
    sample = await engine.sample(ask(temperature=temperature, seed=11))
    expected = reference(prompt, sample.token_ids, temperature)
    assert sample.logprobs == pytest.approx(_of(sample, expected), abs=1e-3)


async def test_greedy_logprobs_are_the_models_own(engine, ask, reference, prompt):
    sample = await engine.sample(ask(temperature=0.0, top_k=2, top_p=0.5))
    expected = reference(prompt, sample.token_ids, 1.0)
    assert sample.logprobs == pytest.approx(_of(sample, expected), abs=1e-3)


async def test_greedy_takes_the_most_likely_token(engine, ask, reference, prompt):
    sample = await engine.sample(ask(temperature=0.0))
    every = reference(prompt, sample.token_ids, 1.0)
    assert _of(sample, every) == pytest.approx([max(row) for row in every], abs=1e-4)


async def test_a_seed_gives_the_same_sample_again(engine, ask, same):
    first, second = await asyncio.gather(engine.sample(ask(seed=5)), engine.sample(ask(seed=5)))
    assert same(first, second)
    assert first.logprobs == pytest.approx(second.logprobs, abs=1e-4)


async def test_a_sample_does_not_depend_on_its_company(engine, ask, prompt, same):
    alone = [await engine.sample(ask(seed=seed)) for seed in (3, 4)]
    others = [ask(seed=100 + i, prompt_token_ids=prompt[: 4 + i % 5], max_tokens=5 + i) for i in range(12)]
    crowd = await asyncio.gather(*(engine.sample(request) for request in (ask(seed=3), *others, ask(seed=4))))
    assert same(alone[0], crowd[0])
    assert same(alone[1], crowd[-1])


async def test_seeds_differ_in_what_they_give(engine, ask):
    samples = await asyncio.gather(*(engine.sample(ask(seed=seed)) for seed in range(16)))
    assert len({tuple(sample.token_ids) for sample in samples}) > 8


@pytest.mark.parametrize("seed", [0, 2**31, 2**63 - 1])
async def test_any_seed_of_63_bits_is_taken(engine, ask, seed):
    assert (await engine.sample(ask(seed=seed))).token_ids


async def test_the_closing_tag_is_kept(engine, ask, close_id):
    sample = await engine.sample(ask(temperature=0.0))
    assert sample.token_ids[-1] == close_id
    assert sample.finish_reason == "stop"
    assert close_id not in sample.token_ids[:-1]


async def test_a_stop_string_ends_a_sample_and_is_kept(engine, ask, close_id):
    by_id = await engine.sample(ask(seed=7))
    by_text = await engine.sample(ask(seed=7, stop_token_ids=(), stop=("#",)))
    assert by_text.token_ids == by_id.token_ids
    assert by_text.finish_reason == "stop"


async def test_the_end_of_the_turn_ends_a_sample(engine, ask, policy):
    """Asked for nothing to stop at, the model writes its closing tag, the answer and the end of its turn."""
    samples = await asyncio.gather(*(engine.sample(ask(seed=s, stop_token_ids=(), max_tokens=60)) for s in range(8)))
    ended = [sample for sample in samples if sample.finish_reason == "stop"]
    assert ended
    assert all(sample.token_ids[-1] in policy.eos_token_ids for sample in ended)


async def test_the_budget_truncates(engine, ask):
    sample = await engine.sample(ask(max_tokens=3))
    assert len(sample.token_ids) == 3
    assert sample.finish_reason == "length"


async def test_top_k_one_is_certain(engine, ask):
    greedy = await engine.sample(ask(temperature=0.0))
    certain = await engine.sample(ask(temperature=1.3, top_k=1))
    assert certain.token_ids == greedy.token_ids
    assert certain.logprobs == pytest.approx([0.0] * len(certain.token_ids), abs=1e-5)


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.9}])
async def test_cut_distributions_are_renormalised(engine, ask, reference, prompt, cut):
    """The log-prob of a token within the cut is its share of what was kept, from the definition of the cut."""
    sample = await engine.sample(ask(temperature=1.5, seed=21, stop_token_ids=(), **cut))
    every = reference(prompt, sample.token_ids, 1.5)
    expected = [_renormalised(row, token, **cut) for row, token in zip(every, sample.token_ids, strict=True)]
    assert sample.logprobs == pytest.approx(expected, abs=1e-3)


def _of(sample: Sample, every: list[list[float]]) -> list[float]:
    return [row[token] for row, token in zip(every, sample.token_ids, strict=True)]


def _renormalised(logprobs: list[float], token: int, top_k: int = 0, top_p: float = 1.0) -> float:
    """Keep the k likeliest; of these, renormalised, the likeliest until they hold more than p; renormalise again."""
    order = sorted(range(len(logprobs)), key=lambda i: -logprobs[i])[: top_k or None]
    mass = sum(math.exp(logprobs[i]) for i in order)
    kept, held = [], 0.0
    for i in order:
        if kept and held >= top_p:
            break
        kept.append(i)
        held += math.exp(logprobs[i]) / mass
    assert token in kept
    return logprobs[token] - math.log(sum(math.exp(logprobs[i]) for i in kept))


async def test_the_context_is_known_and_kept(engine, ask, prompt):
    room = engine.limits.max_model_len
    assert room == 256
    exact = await engine.sample(ask(max_tokens=room - len(prompt), stop_token_ids=()))
    assert exact.token_ids
    for too_much in (ask(max_tokens=room - len(prompt) + 1), ask(prompt_token_ids=[1] * room, max_tokens=1)):
        with pytest.raises(ItemError) as caught:
            await engine.sample(too_much)
        assert caught.value.problem.type == "context_overflow"


@pytest.mark.parametrize("wrong", [10_000, -1])
async def test_an_unknown_token_is_that_requests_error(engine, ask, wrong):
    good, bad = await asyncio.gather(
        engine.sample(ask()), engine.sample(ask(prompt_token_ids=[1, wrong])), return_exceptions=True
    )
    assert good.token_ids
    assert isinstance(bad, ItemError)
    assert bad.problem.type == "unknown_token"


async def test_hundreds_at_once(engine, prompt, close_id):
    requests = [SampleRequest(prompt, 12, seed, 0.7, stop_token_ids=(close_id,)) for seed in range(200)]
    samples = await asyncio.gather(*(engine.sample(request) for request in requests))
    assert all(1 <= len(sample.token_ids) <= 12 for sample in samples)


async def test_a_cancelled_sample_leaves_the_others_alone(engine, ask, same):
    alone = await engine.sample(ask(seed=9))
    long = asyncio.create_task(engine.sample(ask(seed=8, max_tokens=230, stop_token_ids=())))
    await asyncio.sleep(0.02)
    long.cancel()
    after = await engine.sample(ask(seed=9))
    assert long.cancelled() or long.done()
    assert same(alone, after)


async def test_a_working_engine_is_alive(engine, ask):
    await asyncio.gather(engine.sample(ask()), engine.alive())
