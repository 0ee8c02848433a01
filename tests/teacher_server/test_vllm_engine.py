"""How the vLLM engine takes what a server may answer."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from plugins.fake_vllm import FakeVLLM, asked, reply

from rlt_client.errors import ItemError, Unavailable
from rlt_teacher_server.engine.base import Gauges
from rlt_teacher_server.engine.vllm import VLLMEngine
from rlt_teacher_server.engine.vllm.metrics import Metrics, Progress, read_metrics


async def error_of(fake, **given):
    """Without being watched and with it."""
    types = set()
    for watch in (None, lambda ids: None):
        async with fake.engine() as engine:
            with pytest.raises((ItemError, Unavailable)) as caught:
                await engine.sample(asked(**given), watch)
        types.add(type_of(caught.value))
    [type] = types
    return type


def type_of(error):
    return error.problem.type if isinstance(error, ItemError) else error.type


async def test_every_parameter_is_sent():
    fake = FakeVLLM()
    async with fake.engine(eos_token_ids=(9,)) as engine:
        await engine.sample(asked(top_p=0.9, top_k=5, stop_token_ids=(8,), stop=("#",)))
    [body] = fake.asked
    expected = {
        "model": "tiny",
        "prompt": [1, 2],
        "max_tokens": 4,
        "seed": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "stop_token_ids": [8, 9],
        "stop": ["#"],
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "include_stop_str_in_output": True,
        "return_token_ids": True,
        "logprobs": 0,
        "n": 1,
    }
    assert body | expected == body


async def test_raw_logprobs_are_found_out():
    assert await error_of(FakeVLLM(raw=True)) == "engine_misconfigured"


async def test_the_served_model_is_found():
    models = [{"id": "adapter", "parent": "base", "max_model_len": 99}, {"id": "base", "max_model_len": 64}]
    fake = FakeVLLM(models=models)
    async with fake.engine() as engine:
        await engine.connect()
        assert engine.limits.max_model_len == 64
    async with fake.engine(model="adapter") as engine:
        await engine.connect()
        assert engine.limits.max_model_len == 99


@pytest.mark.parametrize("models", [[{"id": "other", "parent": "x", "max_model_len": 5}], [{"id": "tiny"}]])
async def test_a_server_without_a_fitting_model(models):
    assert await error_of(FakeVLLM(models=models)) == "engine_misconfigured"


async def test_many_who_wait_connect_once():
    fake = FakeVLLM()
    async with fake.engine() as engine:
        await asyncio.gather(*(engine.sample(asked()) for _ in range(20)))
    assert fake.connections == 1


async def test_after_a_failure_the_engine_is_asked_again_what_it_serves():
    fake = FakeVLLM()
    async with fake.engine() as engine:
        await engine.sample(asked())
        fake.answer = lambda body: httpx.Response(500, json={"error": {"message": "EngineCore died"}})
        with pytest.raises(Unavailable):
            await engine.sample(asked())
        fake.answer = lambda body: None
        fake.models = [{"id": "tiny", "max_model_len": 5}]
        with pytest.raises(ItemError):
            await engine.sample(asked())
        assert (await engine.sample(asked(max_tokens=3))).token_ids == [5]


@pytest.mark.parametrize(
    ("status", "body", "type"),
    [
        (500, {"error": {"message": "EngineCore encountered an issue"}}, "engine_down"),
        (503, {}, "engine_down"),
        (429, {}, "engine_down"),
        (404, {"error": {"message": "The model `tiny` does not exist."}}, "engine_down"),
        (401, {"error": "Unauthorized"}, "engine_down"),
        (400, {"error": {"message": "too long", "param": "input_tokens"}}, "context_overflow"),
        (400, {"error": {"message": "Token id 999 is out of vocabulary"}}, "unknown_token"),
        (400, {"error": {"message": "no"}}, "engine_refused"),
        (413, {}, "engine_refused"),
    ],
)
async def test_refusals(status, body, type):
    assert await error_of(FakeVLLM(answer=lambda _: httpx.Response(status, json=body))) == type


@pytest.mark.parametrize(
    ("changed", "type"),
    [
        ({"token_ids": None}, "engine_failed"),
        ({"logprobs": None}, "engine_failed"),
        ({"token_ids": [5, 6]}, "engine_failed"),
        ({"token_ids": ["5"], "logprobs": {"token_logprobs": ["low"]}}, "engine_failed"),
        ({"logprobs": {"token_logprobs": [None]}}, "non_finite_logits"),
        ({"finish_reason": "abort"}, "engine_down"),
        ({"finish_reason": "error"}, "engine_failed"),
    ],
)
async def test_answers_that_cannot_be_used(changed, type):
    fake = FakeVLLM()
    fake.answer = lambda body: reply(body, fake.choice(body) | changed)
    assert await error_of(fake) == type


@pytest.mark.parametrize("said", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{}]}'])
async def test_replies_of_something_else(said):
    fake = FakeVLLM(answer=lambda _: httpx.Response(200, content=said))
    async with fake.engine() as engine:
        with pytest.raises(ItemError) as caught:
            await engine.sample(asked())
    assert caught.value.problem.type == "engine_failed"


async def test_log_probs_that_json_cannot_have():
    said = {"error": {"message": "Out of range float values are not JSON compliant: nan", "code": 400}}
    assert await error_of(FakeVLLM(answer=lambda _: httpx.Response(400, json=said))) == "non_finite_logits"


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ReadTimeout("late")])
async def test_connections_that_break(error):
    def answer(_):
        raise error

    assert await error_of(FakeVLLM(answer=answer)) == "engine_down"


async def test_another_program_at_the_address():
    async with VLLMEngine(
        "http://web", probe=[1], transport=httpx.MockTransport(lambda _: httpx.Response(200, content=b"<html>"))
    ) as engine:
        with pytest.raises(Unavailable) as caught:
            await engine.connect()
    assert caught.value.type == "engine_misconfigured"


async def test_no_more_at_once_than_told():
    inside, most = 0, 0

    async def handle(request):
        nonlocal inside, most
        if request.url.path == "/v1/completions" and json.loads(request.content)["logprobs"] == 0:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.005)
            inside -= 1
        return await fake.handle(request)

    fake = FakeVLLM()
    async with fake.engine(concurrency=3, transport=httpx.MockTransport(handle)) as engine:
        samples = await asyncio.gather(*(engine.sample(asked()) for _ in range(12)))
    assert most == 3
    assert max(sample.started - sample.enqueued for sample in samples) > 0.01


@pytest.mark.parametrize("watch", [None, lambda ids: None])
async def test_an_engine_that_takes_too_long(watch):
    async def handle(request):
        if request.url.path == "/v1/completions" and json.loads(request.content)["logprobs"] == 0:
            await asyncio.sleep(30)
        return await fake.handle(request)

    fake = FakeVLLM()
    async with fake.engine(timeout=0.05, transport=httpx.MockTransport(handle)) as engine:
        with pytest.raises(Unavailable, match=r"within 0\.05 s"):
            await engine.sample(asked(), watch)


# What it tells of itself


async def test_version_and_gauges():
    fake = FakeVLLM()
    fake.running, fake.waiting = 3, 5
    async with fake.engine() as engine:
        assert engine.version is None
        await engine.connect()
        assert engine.version == "vllm 0.31.0"
        assert await engine.gauges() == Gauges(running=3, waiting=5)


GAUGES = "vllm:num_requests_running", "vllm:num_requests_waiting"


def test_gauges_of_data_parallel_engines_are_added_up():
    lines = [f'vllm:num_requests_{name}{{engine="{i}"}} {i + 1}.0' for name in ("running", "waiting") for i in range(3)]
    assert read_metrics("\n".join(lines).encode()) == Metrics(running=6, waiting=6, steps=None, born=None)


@pytest.mark.parametrize(
    ("path", "reply", "told"),
    [
        ("/version", httpx.Response(404, json={}), "404"),
        ("/metrics", httpx.Response(404, json={}), "--disable-log-stats"),
        ("/metrics", httpx.Response(200, text="python_info 1.0"), "--disable-log-stats"),
        ("/metrics", httpx.Response(200, text=f"{GAUGES[0]} few\n{GAUGES[1]} 1"), "--disable-log-stats"),
        ("/metrics", httpx.Response(200, text=f"{GAUGES[0]} +Inf\n{GAUGES[1]} NaN"), "--disable-log-stats"),
    ],
)
async def test_what_an_engine_must_tell(path, reply, told):
    fake = FakeVLLM()
    fake.refuses[path] = reply
    async with fake.engine() as engine:
        with pytest.raises(Unavailable, match=told):
            await engine.connect()


async def test_a_vllm_that_is_too_old_is_told_so():
    fake = FakeVLLM()
    fake.choice = lambda body: {"text": "five", "logprobs": None, "finish_reason": "stop"}
    async with fake.engine() as engine:
        with pytest.raises(Unavailable, match="no log-probs") as caught:
            await engine.connect()
    assert caught.value.type == "engine_misconfigured"


async def test_an_engine_that_is_not_healthy():
    fake = FakeVLLM()
    async with fake.engine() as engine:
        await engine.alive()
        fake.refuses["/health"] = httpx.Response(503)
        with pytest.raises(Unavailable):
            await engine.alive()


def test_an_engine_that_does_not_get_on():
    progress = Progress()
    busy, next_step, idle = (Metrics(running, 0, steps, 1.0) for running, steps in ((4, 10), (4, 11), (0, 11)))
    assert [progress.stalled(busy, now) for now in (1000, 1020, 1040)] == [0, 20, 40]
    assert [progress.stalled(next_step, now) for now in (1050, 1060)] == [0, 10]
    assert progress.stalled(idle, 1070) == 0
    assert progress.stalled(next_step, 1080) == 10
    assert progress.stalled(next_step, 2000) == 0  # nobody watched for a quarter of an hour


async def test_an_engine_that_does_not_get_on_is_not_alive(monkeypatch):
    monkeypatch.setattr("rlt_teacher_server.engine.vllm.engine.STALL_S", 0.02)
    fake = FakeVLLM()
    fake.running = 1
    async with fake.engine() as engine:
        await engine.alive()
        await asyncio.sleep(0.03)
        with pytest.raises(Unavailable, match="not got on"):
            await engine.alive()
        fake.steps += 1
        await engine.alive()
