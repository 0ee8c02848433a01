"""A vLLM that roll-outs go straight to, and that dies and is started again at the same address.

The stand-in keeps what such an engine forgets: its adapters, its name for the weights, and the weights.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from plugins.fake_vllm import NOT_FOUND, FakeVLLM

from rlt_client import _waiting, vllm_worker
from rlt_client.errors import InvalidRequest, Unavailable
from rlt_trainer.config.rl import Rollout, RolloutEngine
from rlt_trainer.rl.engines import Ask, Completion, Published, VLLMEngine, vllm

AWAY = 3
"""Calls that nobody answers before it is back; and those that a dead engine answers before it is gone."""
ASKS = [Ask([1, 2], seed) for seed in range(6)]
REPLACING = [
    ("/server_info", 1),
    ("/weight_info", 1),
    ("/v1/completions", 1),
    ("/update_weight_version", 1),
    ("/collective_rpc", 1),
    ("/reset_prefix_cache", 1),
    ("/v1/completions", 2),
    ("/v1/completions", 3),
    ("/update_weight_version", 2),
]
"""The calls that put full weights in place."""
EXCHANGING = [("/v1/models", 1), ("/v1/load_lora_adapter", 1), ("/v1/unload_lora_adapter", 1)]
"""The calls that put an adapter in the place of another."""
LOADING = [(False, "/collective_rpc"), (True, "/v1/load_lora_adapter")]
"""Whether it is an adapter, and the call that vLLM answers with 500 where it cannot take the weights."""
OLD = "policy-of-the-step-before"
DEAD = {"error": {"message": "EngineCore encountered an issue.", "code": 500}}
TEMPERATURE = 0.7


class Mortal(FakeVLLM):
    """Dies of the `count`-th call of a path, once, before or after its answer is out; or only loses that answer."""

    path, count, answers, survives, away, deaths = "", 0, False, False, 0, 0
    ends, ending = "", 0

    def dies(self, path: str, count: int = 1, *, answers: bool = False) -> None:
        self.path, self.count, self.answers = path, count, answers

    def loses_the_reply(self, path: str, count: int = 1) -> None:
        self.path, self.count, self.survives = path, count, True

    def ends_at(self, path: str) -> None:
        """Its engine is dead from the next call of that path on, and it says so for some calls before it is gone."""
        self.ends = path

    async def handle(self, request: httpx.Request) -> httpx.Response:
        if self.away:
            self.away -= 1
            raise httpx.ConnectError("connection refused")
        if request.url.path == self.ends:
            self.ends, self.ending = "", AWAY
        if self.ending:
            return self._ending(request.url.path)
        reply = await super().handle(request)
        self.count -= request.url.path == self.path
        if self.path and not self.count:
            self.path = ""
            if not self.survives:
                self._start_again()
            if not self.answers:
                raise httpx.RemoteProtocolError("the connection broke off")
        return reply

    def _start_again(self) -> None:
        self.restart()
        self.away, self.deaths = AWAY, self.deaths + 1

    def _ending(self, path: str) -> httpx.Response:
        self.ending -= 1
        if not self.ending:
            self._start_again()
        return httpx.Response(503) if path == "/health" else httpx.Response(500, json=DEAD)

    def _completion(self, body: Any) -> httpx.Response:
        if body["model"] not in {"tiny", *self.adapters}:
            return httpx.Response(404, json=NOT_FOUND)
        return super()._completion(body)


@pytest.fixture
def server() -> Mortal:
    return Mortal()


@pytest.fixture
def engine(server: Mortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VLLMEngine:
    monkeypatch.setattr(vllm, "FIRST_PAUSE_S", 0.001)
    return engine_of(server, tmp_path, patience_s=20)


def engine_of(server: Mortal, folder: Path, *, patience_s: float) -> VLLMEngine:
    config = Rollout(
        engine=RolloutEngine.vllm,
        url="http://vllm",
        weights=folder,
        concurrency=2,
        temperature=TEMPERATURE,
        patience_s=patience_s,
    )
    made = VLLMEngine(config, key=None, stop=[], stop_ids=[])
    made._http = httpx.AsyncClient(base_url=config.url, transport=httpx.MockTransport(server.handle))
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "step-000001"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"weights")
    return made


async def sampled(engine: VLLMEngine, weights: Published) -> set[float]:
    """Log-probs, which tell the stand-in's weights apart; every sample must say that they are those wanted."""
    made = [each for each in await engine.generate(ASKS, weights) if isinstance(each, Completion)]
    assert len(made) == len(ASKS)
    assert {each.revision for each in made} == {weights.revision}
    return {logprob for each in made for logprob in each.logprobs}


def logprobs(server: FakeVLLM) -> list[float]:
    """Of a sample."""
    return list(server.choice({"temperature": TEMPERATURE})["logprobs"]["token_logprobs"])


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize(("path", "count"), [("/v1/completions", 1), ("/v1/completions", 4), ("/weight_info", 6)])
async def test_full_weights_are_published_again(
    path: str, count: int, answers: bool, engine: VLLMEngine, server: Mortal, folder: Path
) -> None:
    weights = await engine.publish(folder, lora=False)
    [before] = await sampled(engine, weights)
    server.dies(path, count, answers=answers)
    assert await sampled(engine, weights) == {before}
    assert (server.deaths, server.weights) == (1, folder.name)


@pytest.mark.parametrize("answers", [False, True])
async def test_an_adapter_is_published_again(answers: bool, engine: VLLMEngine, server: Mortal, folder: Path) -> None:
    weights = await engine.publish(folder, lora=True)
    server.dies("/v1/completions", 4, answers=answers)
    await sampled(engine, weights)
    assert server.deaths == 1
    assert {body["model"] for body in server.asked} == set(server.adapters)


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize(("path", "count"), EXCHANGING)
async def test_an_adapter_takes_the_place_of_another_whichever_call_it_dies_of(
    path: str, count: int, answers: bool, engine: VLLMEngine, server: Mortal, folder: Path
) -> None:
    server.adapters[OLD] = 1
    server.dies(path, count, answers=answers)
    weights = await engine.publish(folder, lora=True)
    await sampled(engine, weights)
    assert server.deaths == 1
    assert {body["model"] for body in server.asked} == set(server.adapters) == {engine._adapter(weights)}


@pytest.mark.parametrize(("path", "count"), EXCHANGING)
async def test_an_adapter_takes_the_place_of_another_although_a_reply_is_lost(
    path: str, count: int, engine: VLLMEngine, server: Mortal, folder: Path
) -> None:
    server.adapters[OLD] = 1
    server.loses_the_reply(path, count)
    weights = await engine.publish(folder, lora=True)
    assert len(server.told(path)) > count
    assert set(server.adapters) == {engine._adapter(weights)}
    assert server.told("/v1/load_lora_adapter")[-1]["lora_path"] == str(folder)
    await sampled(engine, weights)
    assert server.deaths == 0


async def test_a_model_whose_name_begins_like_an_adapters_is_left_alone(
    engine: VLLMEngine, server: Mortal, folder: Path
) -> None:
    server.models = [{"id": "policy-7b", "max_model_len": 256}]
    await engine.publish(folder, lora=True)
    assert server.told("/v1/unload_lora_adapter") == []


@pytest.mark.parametrize(("lora", "path"), LOADING)
async def test_weights_that_it_cannot_take_are_not_offered_again(
    lora: bool, path: str, engine: VLLMEngine, server: Mortal, folder: Path
) -> None:
    server.refuses[path] = httpx.Response(500, json={"error": {"message": "Call failed: shapes", "code": 500}})
    with pytest.raises(InvalidRequest, match=r"500: Call failed: shapes$") as caught:
        await engine.publish(folder, lora=lora)
    assert caught.value.type == "unusable_policy"
    assert len(server.told(path)) == 1


async def test_the_flag_that_an_adapter_of_a_high_rank_needs(engine: VLLMEngine, server: Mortal, folder: Path) -> None:
    said = "Call to add_lora method failed: LoRA rank 32 is greater than max_lora_rank 16."
    server.refuses["/v1/load_lora_adapter"] = httpx.Response(500, json={"error": {"message": said, "code": 500}})
    with pytest.raises(InvalidRequest, match=r"max_lora_rank 16\.; start vLLM with a --max-lora-rank of"):
        await engine.publish(folder, lora=True)


@pytest.mark.parametrize("name", ["with --enable-lora", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"])
async def test_the_flags_that_adapters_need(name: str, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InvalidRequest, match=name):
        await engine_of(Mortal(lora=False), tmp_path, patience_s=20).publish(folder, lora=True)


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(("lora", "path"), LOADING)
async def test_a_dead_engine_refuses_nothing(
    lora: bool, path: str, gone: bool, engine: VLLMEngine, server: Mortal, folder: Path
) -> None:
    """Its answer to a load is 500 too."""
    if gone:
        server.refuses[path] = httpx.Response(500, json=DEAD)
        server.dies(path, answers=True)
    else:
        server.ends_at(path)
    await sampled(engine, await engine.publish(folder, lora=lora))
    assert server.deaths == 1


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize(("path", "count"), REPLACING)
async def test_weights_that_are_said_to_be_in_place_are(
    path: str, count: int, answers: bool, engine: VLLMEngine, server: Mortal, folder: Path
) -> None:
    """Whichever call it dies of while they are published: those that it has after a start bear no name of others."""
    server.dies(path, count, answers=answers)
    weights = await engine.publish(folder, lora=False)
    assert server.deaths == 1
    other = FakeVLLM()
    other.weights = folder.name
    assert await sampled(engine, weights) == set(logprobs(other))
    assert set(logprobs(FakeVLLM())) != set(logprobs(other))


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize(("path", "count"), [*REPLACING, ("/collective_rpc", 2)])
async def test_weights_are_in_place_whole_on_a_processor(
    path: str, count: int, answers: bool, engine: VLLMEngine, server: Mortal, folder: Path
) -> None:
    """The stand-in's output layer stays the first one's until it is packed anew."""
    server.device, server.extension = "cpu", vllm_worker.EXTENSION
    server.dies(path, count, answers=answers)
    await sampled(engine, await engine.publish(folder, lora=False))
    assert server.deaths == 1
    assert (server.weights, server.packed) == (folder.name, folder.name)


async def test_a_processor_s_output_layer_that_would_be_kept(engine: VLLMEngine, server: Mortal, folder: Path) -> None:
    server.device = "cpu"
    with pytest.raises(InvalidRequest, match=r"--worker-extension-cls rlt_vllm_worker\.OutputLayers"):
        await engine.publish(folder, lora=False)
    assert (server.weights, server.version) == ("first", "default")


async def test_a_processor_s_engine_that_came_back_without_the_extension(
    engine: VLLMEngine, server: Mortal, folder: Path
) -> None:
    server.device, server.extension = "cpu", vllm_worker.EXTENSION
    await engine.publish(folder, lora=False)
    server.extension = ""
    server.restart()
    with pytest.raises(InvalidRequest, match="pack_output_layers"):
        await engine.publish(folder, lora=False)
    assert not server.version.startswith("sha256:")


async def test_one_that_does_not_tell_its_settings(engine: VLLMEngine, server: Mortal, folder: Path) -> None:
    server.refuses["/server_info"] = httpx.Response(500, json={"error": {"message": "no pip here"}})
    with pytest.raises(InvalidRequest, match="does not tell its settings: 500 no pip here"):
        await engine.publish(folder, lora=False)
    assert (server.weights, server.version) == ("first", "default")


async def test_a_folder_without_weights(engine: VLLMEngine, server: Mortal, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="has no weights"):
        await engine.publish(tmp_path, lora=False)
    assert server.calls == []


async def test_patience_ends(engine: VLLMEngine, server: Mortal, folder: Path) -> None:
    weights = await engine.publish(folder, lora=False)
    server.away = 10**6
    with pytest.raises(Unavailable, match="http://vllm/weight_info: connection refused"):
        await engine_of(server, folder, patience_s=0.05).generate(ASKS, weights)


async def test_one_that_never_keeps_weights(server: Mortal, folder: Path) -> None:
    server.refuses["/update_weight_version"] = httpx.Response(200, json={"success": True})
    with pytest.raises(Unavailable, match="loses its weights again and again"):
        await engine_of(server, folder, patience_s=0.05).publish(folder, lora=False)


async def test_an_engine_that_was_lost_at_work_is_waited_for_as_long_as_any(
    server: Mortal, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The roll-out takes longer than patience lasts, and its reply is lost with the engine."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(_waiting, "time", clock)
    monkeypatch.setattr(vllm, "FIRST_PAUSE_S", 0.001)
    engine = engine_of(server, folder, patience_s=20)
    weights = await engine.publish(folder, lora=False)

    class Slow(httpx.MockTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            clock.now += 5 if server.away else 100 if request.url.path == "/v1/completions" else 0
            return await super().handle_async_request(request)

    engine._http = httpx.AsyncClient(base_url="http://vllm", transport=Slow(server.handle))
    server.dies("/v1/completions", 1, answers=False)
    [made] = await engine.generate(ASKS[:1], weights)
    assert isinstance(made, Completion)
    assert server.deaths == 1
    assert any("http://vllm is waited for" in record.getMessage() for record in caplog.records)
