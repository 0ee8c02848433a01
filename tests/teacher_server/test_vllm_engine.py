"""How the vLLM engine takes what a server may answer.

The fake keeps the shape of vLLM's replies and of its refusals, and its two ways to report log-probs; it keeps no
property of sampling. What a real vLLM does is in tests/contract.
"""

from __future__ import annotations

import asyncio
import json
import math

import httpx
import pytest

from rlt_client.errors import ItemError, Unavailable
from rlt_teacher_server.engine.base import SampleRequest
from rlt_teacher_server.engine.vllm import VLLMEngine

LOGITS = {"token_id:5": 3.0, "token_id:6": 1.0, "token_id:7": 0.0}


class FakeVLLM:
    def __init__(self, *, raw=False, models=None, answer=None, model_len=256):
        self.raw = raw
        self.models = models or [{"id": "tiny", "max_model_len": model_len}]
        self.answer = answer or (lambda body: None)
        self.asked = []
        self.connections = 0

    def handle(self, request):
        if request.url.path == "/v1/models":
            self.connections += 1
            return httpx.Response(200, json={"object": "list", "data": self.models})
        if request.url.path == "/health":
            return httpx.Response(200)
        body = json.loads(request.content)
        probing = body["logprobs"] == 2
        if not probing:
            self.asked.append(body)
        given = None if probing else self.answer(body)
        return given or httpx.Response(200, json={"choices": [self.choice(body)]})

    def choice(self, body):
        temperature = 1.0 if self.raw or body["temperature"] == 0 else body["temperature"]
        total = math.log(sum(math.exp(value / temperature) for value in LOGITS.values()))
        logprobs = {token: value / temperature - total for token, value in LOGITS.items()}
        return {
            "token_ids": [5],
            "logprobs": {"token_logprobs": [logprobs["token_id:5"]], "top_logprobs": [logprobs]},
            "finish_reason": "stop",
        }

    def engine(self, **given):
        return VLLMEngine("http://vllm", probe=[1, 2], transport=httpx.MockTransport(self.handle), **given)


def ask(**given):
    return SampleRequest(**({"prompt_token_ids": [1, 2], "max_tokens": 4, "seed": 3, "temperature": 0.7} | given))


async def error_of(fake, **given):
    async with fake.engine() as engine:
        with pytest.raises((ItemError, Unavailable)) as caught:
            await engine.sample(ask(**given))
    error = caught.value
    return error.problem.type if isinstance(error, ItemError) else error.type


async def test_every_parameter_is_sent():
    fake = FakeVLLM()
    async with fake.engine(eos_token_ids=(9,)) as engine:
        await engine.sample(ask(top_p=0.9, top_k=5, stop_token_ids=(8,), stop=("#",)))
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
        await asyncio.gather(*(engine.sample(ask()) for _ in range(20)))
    assert fake.connections == 1


async def test_after_a_failure_the_engine_is_asked_again_what_it_serves():
    fake = FakeVLLM()
    async with fake.engine() as engine:
        await engine.sample(ask())
        fake.answer = lambda body: httpx.Response(500, json={"error": {"message": "EngineCore died"}})
        with pytest.raises(Unavailable):
            await engine.sample(ask())
        fake.answer = lambda body: None
        fake.models = [{"id": "tiny", "max_model_len": 5}]
        with pytest.raises(ItemError):
            await engine.sample(ask())
        assert (await engine.sample(ask(max_tokens=3))).token_ids == [5]


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
        ({"logprobs": {"token_logprobs": [None]}}, "non_finite_logits"),
        ({"finish_reason": "abort"}, "engine_failed"),
        ({"finish_reason": None}, "engine_failed"),
    ],
)
async def test_answers_that_cannot_be_used(changed, type):
    fake = FakeVLLM()
    fake.answer = lambda body: httpx.Response(200, json={"choices": [fake.choice(body) | changed]})
    assert await error_of(fake) == type


@pytest.mark.parametrize("reply", [b"<html>", b"{}", b'{"choices": []}'])
async def test_replies_of_something_else(reply):
    assert await error_of(FakeVLLM(answer=lambda _: httpx.Response(200, content=reply))) == "engine_failed"


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
        return fake.handle(request)

    fake = FakeVLLM()
    async with VLLMEngine("http://vllm", probe=[1], concurrency=3, transport=httpx.MockTransport(handle)) as engine:
        samples = await asyncio.gather(*(engine.sample(ask()) for _ in range(12)))
    assert most == 3
    assert max(sample.started - sample.enqueued for sample in samples) > 0.01
