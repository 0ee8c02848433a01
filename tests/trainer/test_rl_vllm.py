"""Roll-outs straight on vLLM: which weights sampled, and with what log-probs."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from plugins.training import TRACES, TURNED_STEPS, Servers, TurnsOf, turned

from rlt_client.errors import InvalidRequest
from rlt_client.prompts import TextCodec
from rlt_trainer.config.rl import Rollout, RolloutEngine
from rlt_trainer.rl.engines import Ask, Completion, Failed, Published, VLLMEngine
from rlt_trainer.tiny.model import load_model

pytestmark = [pytest.mark.slow, pytest.mark.engine]

TEMPERATURE = 0.7
PROMPT = "Q 36 A +5 B *3 C +11 D +5 = 17 >"
ASKED = 16
SAME_NATS = 1e-3  # float32
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapter": {"model": {"lora": {"rank": 4, "alpha": 8}}, "grpo": {"reference": {"sync_every": 0}}},
}


@pytest.fixture
async def engine(vllm_engine: str, tmp_path: Path) -> AsyncIterator[VLLMEngine]:
    config = Rollout(
        engine=RolloutEngine.vllm,
        url=vllm_engine,
        weights=tmp_path,
        max_tokens=27,
        temperature=TEMPERATURE,
        patience_s=60,
    )
    made = VLLMEngine(config, key=None, stop=["#"], stop_ids=[])
    yield made
    await made.aclose()


@pytest.fixture
def asks(tiny_model: Path) -> list[Ask]:
    ids = TextCodec.of_folder(tiny_model).tokenizer.encode(PROMPT, add_special_tokens=False)
    return [Ask(ids, seed) for seed in range(ASKED)]


def own_logprobs(folder: Path, ask: Ask, made: Completion) -> torch.Tensor:
    """Of what was sampled, by the weights in a folder, shape [T]."""
    ids = torch.tensor([[*ask.prompt_ids, *made.token_ids]])
    with torch.no_grad():
        logits_tv = load_model(folder)(input_ids=ids).logits[0, len(ask.prompt_ids) - 1 : -1] / TEMPERATURE
    return logits_tv.log_softmax(-1).gather(1, torch.tensor(made.token_ids)[:, None])[:, 0]


async def completions(engine: VLLMEngine, asks: list[Ask], weights: Published) -> list[Completion]:
    made = await engine.generate(asks, weights)
    assert all(isinstance(each, Completion) and each.revision == weights.revision for each in made)
    return [each for each in made if isinstance(each, Completion)]


def apart(folder: Path, asks: list[Ask], made: list[Completion]) -> float:
    return max(
        (own_logprobs(folder, ask, each) - torch.tensor(each.logprobs)).abs().max().item()
        for ask, each in zip(asks, made, strict=True)
    )


async def test_samples_with_the_full_weights_it_was_given(
    engine: VLLMEngine, asks: list[Ask], tiny_model: Path, other_model: Path
) -> None:
    for folder, foreign in ((other_model, tiny_model), (tiny_model, other_model)):
        weights = await engine.publish(folder, lora=False)
        made = await completions(engine, asks, weights)
        assert apart(folder, asks, made) < SAME_NATS
        assert apart(foreign, asks, made) > 0.1
        assert {each.finish_reason for each in made} <= {"stop", "length"}
        assert await completions(engine, asks, weights) == made  # one seed, one sample
        assert len({tuple(each.token_ids) for each in made}) > 1


async def test_an_engine_that_lost_its_weights_gets_them_again(
    engine: VLLMEngine, asks: list[Ask], vllm_engine: str, tiny_model: Path, other_model: Path
) -> None:
    """As one does that was started anew: it has others, under another name."""
    weights = await engine.publish(other_model, lora=False)
    async with httpx.AsyncClient(base_url=vllm_engine, timeout=60) as http:
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(tiny_model)}}
        (await http.post("/collective_rpc", json=reload)).raise_for_status()
        (await http.post("/update_weight_version", json={"new_version": "default"})).raise_for_status()

    made = await completions(engine, asks, weights)

    assert apart(other_model, asks, made) < SAME_NATS
    await engine.publish(tiny_model, lora=False)


async def test_samples_with_the_adapter_it_was_given(
    engine: VLLMEngine,
    asks: list[Ask],
    tiny_model: Path,
    tiny_adapter: Callable[..., Path],
    merged_model: Callable[..., Path],
    vllm_engine: str,
) -> None:
    await engine.publish(tiny_model, lora=False)
    for seed in (5, 6):
        weights = await engine.publish(tiny_adapter(seed), lora=True)
        assert apart(merged_model(seed), asks, await completions(engine, asks, weights)) < SAME_NATS
    name = f"policy-{weights.revision.removeprefix('sha256:')}"
    async with httpx.AsyncClient(base_url=vllm_engine, timeout=60) as http:
        loaded = [each["id"] for each in (await http.get("/v1/models")).json()["data"]]
        assert [each for each in loaded if each.startswith("policy-")] == [name]  # the older one is not kept
        (await http.post("/v1/unload_lora_adapter", json={"lora_name": name})).raise_for_status()
    assert len(await completions(engine, asks, weights)) == ASKED  # it was loaded again


async def test_what_it_cannot_take(
    engine: VLLMEngine, asks: list[Ask], tiny_model: Path, tiny_adapter: Callable[..., Path]
) -> None:
    weights = await engine.publish(tiny_model, lora=False)
    [made] = await engine.generate([Ask([1] * 300, 0)], weights)  # the context has 256
    assert isinstance(made, Failed)
    assert made.type == "engine_refused"
    with pytest.raises(InvalidRequest):
        await engine.publish(tiny_model, lora=True)  # full weights are no adapter
    with pytest.raises(InvalidRequest, match=r"LoRA rank 16 is greater than max_lora_rank 8.*--max-lora-rank"):
        await engine.publish(tiny_adapter(5, rank=16), lora=True)
    await completions(engine, asks, weights)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WAYS)
async def test_a_killed_run_takes_turns_straight_on_it(
    name: str, engine: VLLMEngine, vllm_engine: str, tiny_model: Path, co_training: TurnsOf, servers: Servers
) -> None:
    """Killed while its teacher explains, and while it samples for the second student."""
    first = servers.rewarding()
    run = co_training(f"turns-{name}", rollout={"engine": "vllm", "url": vllm_engine}, **WAYS[name])
    try:
        for point in (("explaining-on-vllm", 2), ("on-vllm", 3)):
            await asyncio.to_thread(run.run, point, status=-signal.SIGKILL)
        told = await asyncio.to_thread(run.run)
    finally:
        await engine.publish(tiny_model, lora=False)
    apart = [float(nats) for nats in re.findall(r"sampling_logp_difference/max (\S+)", told)]
    assert len(apart) >= TURNED_STEPS - 3
    assert max(apart) < SAME_NATS

    turns = [turned(run, number) for number in (1, 2)]
    assert [each["step"] for each in turns] == [2, 4]
    assert [each["traces"] + sum(each["left_out"].values()) for each in turns] == [TRACES] * 2
    table = run.completions()
    students = [first, turns[0]["student"], turns[1]["student"]]
    assert len(set(students)) == 3
    by_step = table.groupby("step")
    assert by_step["student"].unique().map(list).tolist() == [[students[step // 2]] for step in range(TURNED_STEPS)]
    assert by_step["revision"].nunique().tolist() == [1] * TURNED_STEPS
    assert [table[table["step"] == each["step"]]["revision"].iloc[0] for each in turns] == [
        each["teacher"] for each in turns
    ]
    assert servers.rewarding() == students[-1]
