"""Adapters and full weights in a vLLM server: what is asked of it, what it may answer, and what must not happen."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
import pytest
from plugins.fake_engine import eventually
from plugins.fake_vllm import NOT_FOUND, FakeVLLM, asked
from safetensors.numpy import save_file

from rlt_client import vllm_worker
from rlt_client.errors import InvalidRequest, Unavailable
from rlt_teacher_server.engine.base import Adapter, FullWeights
from rlt_teacher_server.engine.vllm.fitting import fit_adapter, fit_weights

SHAPES = {"model.embed.weight": (8, 4), "model.layers.0.q_proj.weight": (6, 4), "lm_head.weight": (8, 4)}
LORA = {"r": 2, "peft_type": "LORA", "target_modules": ["q_proj"]}
PAIR = {"layers.0.q_proj.lora_A.weight": (2, 4), "layers.0.q_proj.lora_B.weight": (6, 2)}


def model(folder, shapes=SHAPES, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    return FullWeights(f"revision of {folder.name}", folder)


def lora(folder, shapes=PAIR, **config):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(LORA | config))
    named = {f"base_model.model.model.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def base(tmp_path):
    return model(tmp_path / "base")


@pytest.fixture
def other(tmp_path):
    return model(tmp_path / "other")


@pytest.fixture
def adapter(tmp_path):
    return lambda number: Adapter(f"policy@{number}", f"base+{number}", lora(tmp_path / f"adapter-{number}"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("rlt_teacher_server.engine.vllm.weights.RESET_PAUSE_S", 0)


def failure(method, message):
    said = {"error": {"message": f"Call to {method} method failed: {message}", "code": 500}}
    return httpx.Response(500, json=said)


# Adapters


async def test_an_adapter_comes_and_goes(base, adapter):
    fake, one = FakeVLLM(), adapter(1)
    async with fake.engine(weights=base) as engine:
        await engine.add(one)
        assert await engine.adapters() == {one.name}
        await engine.sample(asked(adapter=one.name))
        assert fake.asked[-1]["model"] == one.name
        assert fake.told("/v1/load_lora_adapter") == [{"lora_name": one.name, "lora_path": str(one.folder)}]
        await engine.remove(one.name)
        assert await engine.adapters() == frozenset()
        assert fake.in_memory == []


async def test_an_adapter_that_is_there_is_not_loaded_again(base, adapter):
    fake, one = FakeVLLM(), adapter(1)
    async with fake.engine(weights=base) as engine:
        await asyncio.gather(engine.add(one), engine.add(one))
    assert len(fake.told("/v1/load_lora_adapter")) == 1


async def test_no_adapter_falls_out_of_memory(base, adapter):
    """vLLM would read it from its folder again, whatever is there by then, and die if nothing is."""
    fake = FakeVLLM()
    fake.room = 2
    async with fake.engine(weights=base) as engine:
        for number in range(5):
            await engine.add(adapter(number))
            await engine.remove(f"policy@{number}")
        await engine.add(adapter(5))
        await engine.add(adapter(6))
        with pytest.raises(InvalidRequest, match="--max-cpu-loras") as caught:
            await engine.add(adapter(7))
        assert caught.value.type == "adapters_unavailable"
        assert len(fake.in_memory) == 2


@pytest.mark.parametrize(
    ("reply", "type", "told"),
    [
        (failure("add_lora", "LoRA rank 32 is greater than max_lora_rank 16."), "unusable_policy", "max_lora_rank 16"),
        (failure("add_lora", "/data/x/adapter-1 doesn't contain tensors"), "unusable_policy", "adapter-1 doesn't"),
        (failure("add_lora", "<path> doesn't contain tensors"), "unusable_policy", "adapter-1 doesn't"),
        (failure("add_lora", "LoRA is not enabled. Use --enable-lora."), "adapters_unavailable", "--enable-lora"),
        (httpx.Response(404, json=NOT_FOUND), "adapters_unavailable", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (
            httpx.Response(404, json={"error": {"message": "Loading lora x failed: No adapter found for <path>"}}),
            "unusable_policy",
            "adapter-1: vLLM does not find it",
        ),
        (
            httpx.Response(400, json={"error": {"message": "conflicts with a base model"}}),
            "unusable_policy",
            "conflict",
        ),
        (httpx.Response(500, json={"error": {"message": "EngineCore encountered an issue."}}), "engine_down", "Core"),
    ],
)
async def test_adapters_that_are_not_taken(base, adapter, reply, type, told):
    fake = FakeVLLM()
    fake.refuses["/v1/load_lora_adapter"] = reply
    async with fake.engine(weights=base) as engine:
        with pytest.raises((InvalidRequest, Unavailable)) as caught:
            await engine.add(adapter(1))
    assert caught.value.type == type
    assert told in caught.value.detail
    assert "/data/" not in caught.value.detail


async def test_a_vllm_that_was_started_without_adapters(base, adapter):
    async with FakeVLLM(lora=False).engine(weights=base) as engine:
        with pytest.raises(InvalidRequest, match="--enable-lora") as caught:
            await engine.add(adapter(1))
        assert caught.value.type == "adapters_unavailable"
        await engine.remove("never there")


async def test_several_processes_at_one_port(base, other, adapter):
    """An adapter would be known to one of them."""
    async with FakeVLLM(born=None).engine(weights=base) as engine:
        for change in (engine.add(adapter(1)), engine.replace(other)):
            with pytest.raises(InvalidRequest, match="--api-server-count 1"):
                await change


@pytest.mark.parametrize(
    ("shapes", "config", "told"),
    [
        ({}, {}, "half of a LoRA pair"),
        ({"layers.0.q_proj.lora_A.weight": (2, 4)}, {}, "half of a LoRA pair"),
        (PAIR | {"layers.0.q_proj.bias": (6,)}, {}, "half of a LoRA pair"),
        ({name.replace("0", "9"): shape for name, shape in PAIR.items()}, {}, "no such module"),
        ({name: shape[::-1] for name, shape in PAIR.items()}, {}, "rank"),
        (PAIR, {"r": 4}, "rank"),
        (PAIR | {"layers.0.q_proj.lora_A.weight": (2, 5)}, {}, r"\[6, 5\], in the model it is \[6, 4\]"),
        (PAIR, {"target_modules": ["c_attn"]}, "target_modules"),
        (PAIR, {"alpha_pattern": {"q_proj": 3}}, "one alpha"),
        (PAIR, {"peft_type": "IA3"}, "only LoRA"),
    ],
)
def test_adapters_that_do_not_fit(base, tmp_path, shapes, config, told):
    with pytest.raises(InvalidRequest, match=told) as caught:
        fit_adapter(base.folder, lora(tmp_path / "bad", shapes, **config))
    assert caught.value.type == "unusable_policy"
    assert str(tmp_path) not in str(caught.value)


def test_adapters_that_fit(base, tmp_path):
    fit_adapter(base.folder, lora(tmp_path / "plain"))
    fit_adapter(base.folder, lora(tmp_path / "pattern", target_modules=".*q_proj"))
    pair = {"embed.lora_embedding_A": (2, 8), "embed.lora_embedding_B": (4, 2)}
    fit_adapter(base.folder, lora(tmp_path / "embedding", pair, target_modules=["model.embed"]))


# Full weights


async def test_weights_are_replaced_and_proved(base, other, quick):
    fake = FakeVLLM()
    fake.resets = [False, False, True]
    async with fake.engine(weights=base) as engine:
        assert await engine.holds() == base
        await engine.replace(other)
        assert await engine.holds() == other
        names = [body["new_version"] for body in fake.told("/update_weight_version")]
        assert names == ["unfinished", other.revision]
        [loading] = [body for body in fake.told("/collective_rpc") if body["method"] == "reload_weights"]
        assert loading["kwargs"] == {"weights_path": str(other.folder)}
        probes = [body for body in fake.told("/v1/completions") if body["logprobs"] == 5]
        assert ["cache_salt" in body for body in probes] == [False, True, False]
        assert {len(body["prompt"]) for body in probes} == {255}
        assert (await engine.sample(asked())).token_ids == [5]
        await engine.replace(base)
        assert await engine.holds() == base


async def test_adapters_of_the_old_weights_are_unloaded_first(base, other, adapter, quick):
    fake = FakeVLLM()
    async with fake.engine(weights=base) as engine:
        await engine.add(adapter(1))
        await engine.replace(other)
        assert await engine.adapters() == frozenset()


class Stale(FakeVLLM):
    """Says that its cache is empty, and keeps it."""

    def _reset(self, _):
        return httpx.Response(200, json={"success": True})


class Sick(FakeVLLM):
    """The new weights are not finite."""

    def choice(self, body):
        choice = super().choice(body)
        if self.weights == "other":
            choice["logprobs"]["top_logprobs"] = [None]
        return choice


def busy():
    fake = FakeVLLM()
    fake.resets = [False]
    return fake


def breaking():
    fake = FakeVLLM()
    fake.refuses["/collective_rpc"] = failure("collective_rpc", "Attempted to load weight (128) into parameter (64)")
    return fake


@pytest.mark.parametrize(
    ("fake", "type", "told"),
    [
        (busy, "engine_down", "requests still run"),
        (Stale, "engine_misconfigured", "old weights"),
        (Sick, "unusable_policy", "other"),
        (breaking, "unusable_policy", r"other: Attempted to load weight \(128\)"),
    ],
)
async def test_a_change_that_fails_leaves_it_unusable_until_the_next_good_one(base, other, quick, fake, type, told):
    fake = fake()
    async with fake.engine(weights=base) as engine:
        await engine.sample(asked())
        with pytest.raises((InvalidRequest, Unavailable), match=told) as caught:
            await engine.replace(other)
        assert caught.value.type == type
        assert await engine.holds() is None
        before = len(fake.asked)
        for _ in range(2):
            with pytest.raises(Unavailable, match="could not be replaced"):
                await engine.sample(asked())
            await engine.connect()  # vLLM may die of a sample
        assert len(fake.asked) == before
        fake.refuses.clear()
        fake.resets, fake.cached = [True], ""
        await engine.replace(base)
        assert await engine.holds() == base
        assert (await engine.sample(asked())).token_ids == [5]


async def test_a_change_that_was_cancelled_is_one_that_failed(base, other, quick):
    fake = FakeVLLM()
    fake.resets = [False]
    async with fake.engine(weights=base) as engine:
        await engine.connect()
        changing = asyncio.create_task(engine.replace(other))
        await eventually(lambda: bool(fake.told("/reset_prefix_cache")))
        changing.cancel()
        await asyncio.wait([changing])
        with pytest.raises(Unavailable):
            await engine.sample(asked())
        assert await engine.holds() is None


async def test_a_change_that_another_process_did_not_finish(base, quick):
    fake = FakeVLLM()
    fake.version = "unfinished"
    async with fake.engine(weights=base) as engine:
        await engine.connect()
        assert fake.told("/v1/completions") == []  # it may die of one
        assert await engine.holds() is None
        await engine.replace(base)
        assert await engine.holds() == base
        await engine.sample(asked())


async def test_weights_that_another_process_put_there(base):
    fake = FakeVLLM()
    fake.version = "what another teacher calls them"
    async with fake.engine(weights=base) as engine:
        await engine.connect()
        assert await engine.holds() is None


@pytest.mark.parametrize("missing", [None, "/server_info", "/weight_info"])
async def test_a_vllm_that_keeps_its_weights(base, other, missing):
    fake = FakeVLLM(dev=missing is not None)
    if missing:
        fake.refuses[missing] = httpx.Response(404, json=NOT_FOUND)
    async with fake.engine(weights=base) as engine:
        with pytest.raises(InvalidRequest, match="VLLM_SERVER_DEV_MODE=1") as caught:
            await engine.replace(other)
        assert caught.value.type == "weights_unavailable"
        assert await engine.holds() == base
        await engine.sample(asked())


async def test_a_vllm_on_a_processor_packs_its_output_layer_anew(base, other):
    fake = FakeVLLM(device="cpu", extension=vllm_worker.EXTENSION)
    async with fake.engine(weights=base) as engine:
        await engine.replace(other)
    assert [body["method"] for body in fake.told("/collective_rpc")] == ["reload_weights", "pack_output_layers"]


async def test_a_vllm_on_a_processor_that_would_keep_its_output_layer(base, other):
    fake = FakeVLLM(device="cpu", extension="some.Other")
    async with fake.engine(weights=base) as engine:
        with pytest.raises(InvalidRequest, match=r"--worker-extension-cls rlt_vllm_worker\.OutputLayers") as caught:
            await engine.replace(other)
        assert caught.value.type == "weights_unavailable"
        assert fake.told("/collective_rpc") == []
        assert await engine.holds() == base
        await engine.sample(asked())


async def test_a_vllm_that_cannot_tell_its_settings_says_why(base, other):
    fake = FakeVLLM()
    fake.refuses["/server_info"] = httpx.Response(500, json={"error": {"message": "no pip here"}})
    async with fake.engine(weights=base) as engine:
        with pytest.raises(InvalidRequest, match="/server_info answers 500: no pip here") as caught:
            await engine.replace(other)
        assert caught.value.type == "weights_unavailable"
        await engine.sample(asked())


@pytest.mark.parametrize(
    "shapes",
    [
        {name: SHAPES[name] for name in list(SHAPES)[:2]},
        SHAPES | {"model.layers.1.q_proj.weight": (6, 4)},
        SHAPES | {"model.layers.0.q_proj.weight": (4, 6)},
    ],
    ids=["missing", "too-many", "other-shape"],
)
async def test_weights_that_do_not_fit_never_reach_it(base, tmp_path, shapes):
    fake = FakeVLLM()
    async with fake.engine(weights=base) as engine:
        with pytest.raises(InvalidRequest, match="than in the model") as caught:
            await engine.replace(model(tmp_path / "bad", shapes))
        assert caught.value.type == "unusable_policy"
        assert str(tmp_path) not in str(caught.value)
        assert fake.told("/update_weight_version") == []
        await engine.sample(asked())


def test_a_tied_head_may_be_left_out(tmp_path):
    tied = model(tmp_path / "tied", tie_word_embeddings=True)
    without = model(tmp_path / "without", {name: SHAPES[name] for name in list(SHAPES)[:2]})
    fit_weights(tied.folder, without.folder)


def test_files_that_are_no_weights(base, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InvalidRequest, match="no safetensors"):
            fit_weights(base.folder, folder)
    broken = model(tmp_path / "broken")
    (broken.folder / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        fit_weights(base.folder, broken.folder)


# Started anew


async def test_a_server_that_lost_its_weights_is_not_sampled_from(base, other, quick, monkeypatch):
    monkeypatch.setattr("rlt_teacher_server.engine.vllm.engine.LOOK_S", 0)
    fake = FakeVLLM()
    async with fake.engine(weights=base) as engine:
        await engine.replace(other)
        await engine.sample(asked())
        fake.restart()
        for _ in range(2):
            with pytest.raises(Unavailable, match="started anew"):
                await engine.sample(asked())
        assert fake.asked == []
        await engine.connect()
        assert await engine.holds() == base
        await engine.sample(asked())


async def test_its_gauges_tell_that_it_was_started_anew(base, other, adapter, quick):
    fake = FakeVLLM()
    async with fake.engine(weights=base) as engine:
        await engine.add(adapter(1))
        await engine.replace(other)
        await engine.add(adapter(2))
        fake.restart()
        await engine.gauges()
        with pytest.raises(Unavailable, match="started anew"):
            await engine.sample(asked())
        await engine.connect()
        assert await engine.adapters() == frozenset()
        await engine.add(adapter(3))
        await engine.remove("policy@3")
        assert fake.in_memory == []


async def test_a_server_that_lost_nothing_is_simply_used(base):
    fake = FakeVLLM()
    async with fake.engine(weights=base) as engine:
        await engine.sample(asked())
        fake.restart()
        await engine.gauges()
        assert (await engine.sample(asked())).token_ids == [5]


async def test_an_adapter_that_is_gone_is_the_engines_failure(base, adapter):
    """Not the request's: it is loaded again, and the sample begun anew."""
    fake = FakeVLLM()
    said = {"error": {"message": "The model `policy@1` does not exist.", "code": 404}}
    async with fake.engine(weights=base) as engine:
        await engine.add(adapter(1))
        fake.answer = lambda body: httpx.Response(404, json=said)
        with pytest.raises(Unavailable, match="does not exist"):
            await engine.sample(asked(adapter="policy@1"))
