"""Adapters and full weights in the embedded engine: what they compute, what they leave alone, what is refused."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref

import pytest
import pytest_asyncio
import torch
from peft import LoraConfig, get_peft_model
from plugins.policies import BROKEN_ADAPTERS, BROKEN_MODELS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlt_client.errors import InvalidRequest, ItemError
from rlt_client.prompts import teacher_prompt
from rlt_service.revision import model_revision
from rlt_teacher_server.engine.base import Adapter, FullWeights, SampleRequest
from rlt_teacher_server.engine.decoding import Decoder
from rlt_teacher_server.engine.transformers import TransformersEngine
from rlt_teacher_server.engine.weights import Loader
from rlt_teacher_server.model import load_model


@pytest.fixture(scope="module")
def teacher_model(tiny_model):
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def prompt(teacher_model, mini):
    codec = teacher_model.codec
    return codec.encode(teacher_prompt(codec, mini, mini.probe.question, mini.probe.answer)).ids


@pytest.fixture
def make_engine(teacher_model):
    def make(folder=None, **given):
        loader = Loader(teacher_model.codec.decode, dtype="auto", device="cpu", threads=1)
        return TransformersEngine(
            loader,
            full(folder or teacher_model.folder),
            max_model_len=256,
            **({"eos_token_ids": teacher_model.eos_token_ids} | given),
        )

    return make


@pytest_asyncio.fixture
async def engine(make_engine):
    async with make_engine() as running:
        yield running


@pytest.fixture
def ask(prompt):
    def request(seed=0, **given):
        return SampleRequest(**({"prompt_token_ids": prompt, "max_tokens": 40, "seed": seed} | given))

    return request


def full(folder):
    return FullWeights(model_revision(folder), folder)


def lora(folder, name=None):
    return Adapter(name or folder.name, f"sha256:0+{model_revision(folder)}", folder)


def same(left, right, within=1e-5):
    return left.token_ids == right.token_ids and left.logprobs == pytest.approx(right.logprobs, abs=within)


def nearly_same(left, right):
    """Merged weights are rounded once more."""
    return same(left, right, within=1e-4)


async def samples(engine, ask, **given):
    return await asyncio.gather(*(engine.sample(ask(seed, **given)) for seed in range(6)))


# Adapters


async def test_an_adapter_writes_what_its_merged_weights_write(engine, make_engine, ask, tiny_adapter, merged_model):
    before = await samples(engine, ask)
    await engine.add(lora(tiny_adapter(1), "one"))
    adapted = await samples(engine, ask, adapter="one")
    async with make_engine(merged_model(1)) as merged:
        assert all(map(nearly_same, adapted, await samples(merged, ask)))
    after = await samples(engine, ask)
    assert [s.token_ids for s in before] == [s.token_ids for s in after]
    assert [s.logprobs for s in before] == [s.logprobs for s in after], "the base has changed"
    assert not any(map(same, adapted, before))


@pytest.mark.parametrize(
    "options", [{"use_rslora": True}, {"use_dora": True}, {"target_modules": "all-linear"}], ids=str
)
async def test_other_kinds_of_lora(engine, make_engine, ask, tiny_model, tmp_path, options):
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    config = {"r": 4, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
    torch.manual_seed(5)
    config["init_lora_weights"] = False  # random, not zeros: it changes the model
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(**config))
    model.save_pretrained(adapter)
    model.merge_and_unload().save_pretrained(merged)
    await engine.add(lora(adapter))
    adapted = await samples(engine, ask, adapter="adapter")
    async with make_engine(merged) as other:
        assert all(map(nearly_same, adapted, await samples(other, ask)))


async def test_adapters_and_their_base_at_once(engine, ask, tiny_adapter):
    """Requests of four versions, mixed: each gets what it gets alone."""
    names = [None, "a", "b", "c"]
    for seed, name in enumerate(names[1:]):
        await engine.add(lora(tiny_adapter(seed), name))
    alone = {name: await engine.sample(ask(7, adapter=name)) for name in names}
    assert len({tuple(sample.logprobs) for sample in alone.values()}) == 4
    crowd = await asyncio.gather(*(engine.sample(ask(7, adapter=name)) for name in names * 5))
    assert all(same(sample, alone[name]) for name, sample in zip(names * 5, crowd, strict=True))


async def test_one_policy_does_not_wait_for_another_ones_long_sample(make_engine, ask, tiny_adapter, monkeypatch):
    first, queued, sample = asyncio.Event(), threading.Event(), Decoder.sample

    def held(self, batch):
        if batch.rows[0].ids:
            assert queued.wait(60)
        sample(self, batch)

    monkeypatch.setattr(Decoder, "sample", held)
    async with make_engine(eos_token_ids=()) as engine:
        await engine.add(lora(tiny_adapter(1), "one"))
        slow = asyncio.create_task(engine.sample(ask(max_tokens=200, temperature=2.0), lambda ids: first.set()))
        await first.wait()
        quick = asyncio.create_task(engine.sample(ask(max_tokens=5, adapter="one")))
        await asyncio.sleep(0)
        queued.set()
        assert (await quick).token_ids
        assert (await quick).finished < (await slow).finished


async def test_adapters_share_the_tensors_of_their_base(engine, ask, tiny_adapter):
    await engine.add(lora(tiny_adapter(1), "one"))
    base, adapted = engine._base.model, engine._adapters["one"].model
    own = {id(p) for p in adapted.parameters()} - {id(p) for p in base.parameters()}
    bytes_of_own = sum(p.nbytes for p in adapted.parameters() if id(p) in own)
    assert bytes_of_own == sum(t.nbytes for t in load_file(tiny_adapter(1) / "adapter_model.safetensors").values())


async def test_requests_go_on_while_an_adapter_is_loaded(engine, ask, tiny_adapter):
    alone = await engine.sample(ask(3))
    running = [asyncio.create_task(engine.sample(ask(3))) for _ in range(4)]
    for seed in range(4):
        await engine.add(lora(tiny_adapter(seed), f"v{seed}"))
    assert all(same(alone, sample) for sample in await asyncio.gather(*running))


async def test_which_adapters_there_are(engine, ask, tiny_adapter):
    assert await engine.adapters() == frozenset()
    name = "tiny@0123456789abcdef-x.1"
    await engine.add(lora(tiny_adapter(1), name))
    await engine.add(lora(tiny_adapter(1), name))
    assert await engine.adapters() == {name}
    assert (await engine.sample(ask(adapter=name))).token_ids
    await engine.remove(name)
    await engine.remove(name)
    assert await engine.adapters() == frozenset()
    with pytest.raises(ItemError) as caught:
        await engine.sample(ask(adapter=name))
    assert caught.value.problem.type == "engine_refused"


async def idle(engine):
    """Its thread knows a sample's model for a moment longer than the sample takes."""
    await asyncio.get_running_loop().run_in_executor(engine._thread, int)


async def test_a_removed_adapter_leaves_no_memory(engine, ask, tiny_adapter):
    await engine.add(lora(tiny_adapter(1), "one"))
    await engine.sample(ask(adapter="one"))
    await idle(engine)
    model = weakref.ref(engine._adapters["one"].model)
    await engine.remove("one")
    gc.collect()
    assert model() is None


@pytest.mark.parametrize("fault", BROKEN_ADAPTERS)
async def test_an_adapter_that_cannot_be_used(engine, ask, broken_policy, fault):
    before = await engine.sample(ask(4))
    folder = broken_policy(fault)
    with pytest.raises(InvalidRequest) as caught:
        await engine.add(lora(folder))
    assert caught.value.type == "unusable_policy"
    _plain(caught.value.detail, folder)
    assert await engine.adapters() == frozenset()
    after = await engine.sample(ask(4))
    assert (before.token_ids, before.logprobs) == (after.token_ids, after.logprobs)


async def test_an_adapter_of_no_numbers(engine, tiny_adapter):
    folder = tiny_adapter(13)
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidRequest, match="not finite"):
        await engine.add(lora(folder))


async def test_without_peft(engine, tiny_adapter, monkeypatch):
    folder = tiny_adapter(1)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InvalidRequest, match=r"rlt-teacher-server\[lora\]") as caught:
        await engine.add(lora(folder))
    assert caught.value.type == "adapters_unavailable"


# Full weights


async def test_full_weights_take_the_place_of_others(engine, make_engine, ask, tiny_model, other_model, tiny_adapter):
    assert await engine.holds() == full(tiny_model)
    await engine.add(lora(tiny_adapter(1), "one"))
    before = await samples(engine, ask)
    await engine.replace(full(other_model))
    assert await engine.holds() == full(other_model)
    assert await engine.adapters() == frozenset(), "they sat on the old weights"
    async with make_engine(other_model) as fresh:
        assert all(map(same, await samples(engine, ask), await samples(fresh, ask)))
    await engine.replace(full(tiny_model))
    assert all(map(same, await samples(engine, ask), before))


async def test_an_adapter_sits_on_the_weights_of_its_time(engine, make_engine, ask, other_model, tiny_adapter):
    await engine.replace(full(other_model))
    await engine.add(lora(tiny_adapter(1), "one"))
    async with make_engine(other_model) as fresh:
        await fresh.add(lora(tiny_adapter(1), "one"))
        expected = await samples(fresh, ask, adapter="one")
    assert all(map(same, await samples(engine, ask, adapter="one"), expected))


async def test_replaced_weights_leave_no_memory(engine, ask, other_model, tiny_adapter):
    await engine.add(lora(tiny_adapter(1), "one"))
    await asyncio.gather(engine.sample(ask()), engine.sample(ask(adapter="one")))
    await idle(engine)
    old = [weakref.ref(engine._base.model), weakref.ref(engine._adapters["one"].model)]
    await engine.replace(full(other_model))
    assert [model() for model in old] == [None, None]


@pytest.mark.parametrize("fault", sorted(BROKEN_MODELS.keys() - {"tokenizer"}))
async def test_weights_that_cannot_be_used_leave_the_old_ones(
    engine, ask, tiny_model, broken_policy, tiny_adapter, fault
):
    """Another tokenizer is not the engine's to see: it knows ids only."""
    await engine.add(lora(tiny_adapter(1), "one"))
    before = await asyncio.gather(engine.sample(ask(4)), engine.sample(ask(4, adapter="one")))
    folder = broken_policy(fault)
    with pytest.raises(InvalidRequest) as caught:
        await engine.replace(FullWeights("sha256:0", folder))
    assert caught.value.type == "unusable_policy"
    _plain(caught.value.detail, folder)
    assert await engine.holds() == full(tiny_model)
    after = await asyncio.gather(engine.sample(ask(4)), engine.sample(ask(4, adapter="one")))
    assert [(s.token_ids, s.logprobs) for s in before] == [(s.token_ids, s.logprobs) for s in after]


async def test_weights_of_another_architecture(engine, tiny_model, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=87, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(InvalidRequest, match="Qwen2ForCausalLM, served is LlamaForCausalLM"):
        await engine.replace(FullWeights("sha256:0", tmp_path))


async def test_weights_that_are_no_numbers(engine, tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidRequest, match="not finite"):
        await engine.replace(FullWeights("sha256:0", tmp_path))


def _plain(detail, folder):
    """One line for people, which does not tell where things lie on this machine."""
    assert detail
    assert "\n" not in detail
    assert str(folder.parent) not in detail
