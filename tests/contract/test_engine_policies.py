"""What every engine promises of adapters and of full weights, against plain forward passes of the merged models."""

from __future__ import annotations

import asyncio
import math
import shutil

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlt_client.errors import InvalidRequest, ItemError, Unavailable
from rlt_service.revision import model_revision
from rlt_teacher_server.engine.base import Adapter, FullWeights

pytestmark = pytest.mark.asyncio(loop_scope="session")

SOME = {"temperature": 0.9, "max_tokens": 20}
ADAPTER_FAULTS = [
    "shapes-of-another-model",
    "weights-missing",
    "modules-the-model-lacks",
    "rank-is-not-the-weights",
    "not-lora",
    "no-adapter-config",
    "adapter-cut-off",
]
MODEL_FAULTS = ["architecture", "tensor-missing", "model-cut-off", "pickles"]


@pytest.fixture(scope="session")
def first(tiny_model, policy):
    return FullWeights(policy.ref.revision, tiny_model)


@pytest.fixture(scope="session")
def other(other_model):
    return FullWeights(model_revision(other_model), other_model)


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def as_it_was(engine, first):
    """Others use the same engine."""
    yield
    for name in await engine.adapters():
        await engine.remove(name)
    held = await engine.holds()
    if held is None or held.revision != first.revision:
        await engine.replace(first)


@pytest.fixture
def adapter(tiny_adapter, request):
    """An adapter under a name that was never used before."""
    count = 0

    def make(seed, folder=None, **given):
        nonlocal count
        count += 1
        name = f"{request.node.name.partition('[')[0]}@{seed}-{count}"
        return Adapter(name, f"base+{seed}", folder or tiny_adapter(seed, **given))

    return make


@pytest.fixture(scope="session")
def computed():
    """Log-probs of given ids after a prompt, by a plain forward pass of the model in a folder."""
    models = {}

    @torch.inference_mode()
    def logprobs(folder, prompt, ids, temperature):
        if folder not in models:
            models[folder] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        logits = models[folder](torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / temperature
        return [row[token].item() for row, token in zip(logits.log_softmax(-1), ids, strict=True)]

    return logprobs


@pytest.fixture
def is_of(computed):
    """Whether a sample's log-probs are those of the model in a folder."""

    def compare(sample, request, folder):
        expected = computed(folder, request.prompt_token_ids, sample.token_ids, request.temperature)
        return sample.logprobs == pytest.approx(expected, abs=2e-3)

    return compare


def refusal(caught):
    assert isinstance(caught.value, InvalidRequest)
    return caught.value.type


# Adapters


async def test_an_engine_begins_with_its_first_weights(engine, first):
    assert await engine.holds() == first
    assert await engine.adapters() == frozenset()


async def test_an_adapter_is_what_its_requests_get(engine, ask, adapter, merged_model, tiny_model, is_of):
    one = adapter(1)
    request = ask(**SOME)
    await engine.add(one)
    assert await engine.adapters() == {one.name}
    own, plain = await asyncio.gather(engine.sample(ask(**SOME, adapter=one.name)), engine.sample(request))
    assert is_of(own, request, merged_model(1))
    assert is_of(plain, request, tiny_model)
    assert not is_of(own, request, tiny_model)


async def test_adapters_are_used_side_by_side(engine, ask, adapter, merged_model, is_of):
    pair = [adapter(1), adapter(2, rank=8)]
    for each in pair:
        await engine.add(each)
    requests = [ask(**SOME, seed=seed, adapter=each.name) for seed in range(8) for each in pair]
    samples = await asyncio.gather(*(engine.sample(request, lambda ids: None) for request in requests))
    folders = [merged_model(1), merged_model(2, rank=8)] * 8
    assert all(map(is_of, samples, requests, folders))


async def test_adding_an_adapter_twice_does_nothing(engine, ask, adapter, same):
    one = adapter(1)
    await engine.add(one)
    before = await engine.sample(ask(adapter=one.name))
    await engine.add(one)
    assert await engine.adapters() == {one.name}
    assert same(before, await engine.sample(ask(adapter=one.name)))


async def test_an_adapter_is_taken_away(engine, ask, adapter, same):
    one, plain = adapter(1), await engine.sample(ask())
    await engine.add(one)
    await engine.remove(one.name)
    await engine.remove(one.name)
    assert await engine.adapters() == frozenset()
    with pytest.raises((ItemError, Unavailable)):
        await engine.sample(ask(adapter=one.name))
    assert same(plain, await engine.sample(ask()))


async def test_requests_go_on_while_an_adapter_comes(engine, ask, adapter, same):
    alone = [await engine.sample(ask(seed=seed)) for seed in range(3)]
    loading = asyncio.create_task(engine.add(adapter(3)))
    meanwhile = await asyncio.gather(*(engine.sample(ask(seed=seed)) for seed in range(3)))
    await loading
    assert all(map(same, alone, meanwhile))


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
async def test_a_faulty_adapter_is_refused(engine, ask, adapter, broken_policy, same, fault):
    before, folder = await engine.sample(ask()), broken_policy(fault)
    with pytest.raises(InvalidRequest) as caught:
        await engine.add(adapter(1, folder=folder))
    assert refusal(caught) == "unusable_policy"
    assert await engine.adapters() == frozenset()
    assert same(before, await engine.sample(ask()))


# Full weights


async def test_other_weights_take_the_place_of_the_first(engine, ask, first, other, is_of, same):
    request = ask(**SOME)
    before = await engine.sample(request)
    await engine.replace(other)
    assert await engine.holds() == other
    after = await engine.sample(request)
    assert is_of(after, request, other.folder)
    assert not is_of(after, request, first.folder)
    await engine.replace(first)
    assert await engine.holds() == first
    assert same(before, await engine.sample(request))


async def test_adapters_go_with_the_weights_that_they_were_made_for(engine, ask, adapter, first, other):
    one = adapter(1)
    await engine.add(one)
    await engine.replace(other)
    assert await engine.adapters() == frozenset()
    with pytest.raises((ItemError, Unavailable)):
        await engine.sample(ask(adapter=one.name))


async def test_nothing_of_the_old_weights_is_left_in_a_cache(engine, prompt, ask, first, other, is_of):
    long = (prompt * 20)[:230]
    requests = [ask(prompt_token_ids=long, temperature=1.0, max_tokens=8, seed=seed) for seed in range(4)]
    for weights in (first, other, first):
        if weights != await engine.holds():
            await engine.replace(weights)
        samples = await asyncio.gather(*(engine.sample(request) for request in requests))
        assert all(is_of(sample, request, weights.folder) for sample, request in zip(samples, requests, strict=True))


async def test_the_same_weights_may_be_put_in_again(engine, ask, first, same):
    before = await engine.sample(ask())
    await engine.replace(first)
    assert await engine.holds() == first
    assert same(before, await engine.sample(ask()))


@pytest.mark.parametrize("fault", MODEL_FAULTS)
async def test_faulty_weights_are_refused(engine, ask, broken_policy, first, same, fault):
    """An engine may be unusable thereafter, until it gets good ones."""
    before = await engine.sample(ask())
    with pytest.raises(InvalidRequest) as caught:
        await engine.replace(FullWeights(f"revision of {fault}", broken_policy(fault)))
    assert refusal(caught) == "unusable_policy"
    assert await engine.holds() in (None, first)
    await engine.replace(first)
    assert same(before, await engine.sample(ask()))


async def test_an_adapter_works_on_weights_that_came_back(engine, ask, adapter, first, other, merged_model, is_of):
    await engine.replace(other)
    await engine.replace(first)
    one = adapter(1)
    await engine.add(one)
    request = ask(**SOME, adapter=one.name)
    sample = await engine.sample(request)
    assert is_of(sample, request, merged_model(1))
    assert all(map(math.isfinite, sample.logprobs))


# vLLM alone

real_vllm = pytest.mark.parametrize("engine_address", [pytest.param("vllm", marks=pytest.mark.engine)], indirect=True)


@real_vllm
async def test_an_adapter_of_a_higher_rank_than_vllm_was_started_for(engine, ask, adapter, same):
    before = await engine.sample(ask())
    with pytest.raises(InvalidRequest, match="LoRA rank 16 is greater than max_lora_rank 8") as caught:
        await engine.add(adapter(1, rank=16))
    assert refusal(caught) == "unusable_policy"
    assert same(before, await engine.sample(ask()))


@real_vllm
async def test_weights_that_compute_no_numbers(engine, ask, first, other_model, tmp_path, same):
    """Their shapes are right: what finds them is the proof after they were put in."""
    before = await engine.sample(ask())
    shutil.copytree(other_model, tmp_path / "sick")
    tensors = load_file(tmp_path / "sick" / "model.safetensors")
    sick = {name: tensor * math.nan for name, tensor in tensors.items()}
    save_file(sick, tmp_path / "sick" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidRequest, match="not finite") as caught:
        await engine.replace(FullWeights("sick", tmp_path / "sick"))
    assert refusal(caught) == "unusable_policy"
    assert await engine.holds() is None
    with pytest.raises(Unavailable, match="could not be replaced"):
        await engine.sample(ask())
    await engine.replace(first)
    assert same(before, await engine.sample(ask()))


@real_vllm
async def test_an_adapters_folder_may_go_once_it_is_loaded(engine, ask, adapter, tiny_adapter, tmp_path, same):
    """More of them than vLLM keeps on its device: it takes them from memory, never from the folder."""
    several = [adapter(seed, folder=shutil.copytree(tiny_adapter(seed), tmp_path / str(seed))) for seed in range(5)]
    for each in several:
        await engine.add(each)
    before = [await engine.sample(ask(adapter=each.name)) for each in several]
    for each in several:
        shutil.rmtree(each.folder)
    after = [await engine.sample(ask(adapter=each.name)) for each in several]
    assert all(map(same, before, after))
