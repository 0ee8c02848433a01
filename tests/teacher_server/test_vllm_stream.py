"""Samples that vLLM sends token by token."""

from __future__ import annotations

import json

import httpx
import pytest
from plugins.fake_vllm import DONE, FakeVLLM, asked, event, events

from rlt_client.errors import ItemError, Unavailable
from rlt_teacher_server.engine.vllm.stream import Stream

IDS = [[5], [6, 7, 8], [9]]
LOGPROBS = [[-0.5], [-0.25, -1.5, -0.125], [-2.0]]


def part(ids, logprobs, finish_reason=None):
    logs = {"token_logprobs": logprobs, "tokens": [f"token_id:{token}" for token in ids]}
    return {"token_ids": ids, "text": "✓", "logprobs": logs, "finish_reason": finish_reason}


def said(*more: bytes) -> bytes:
    """Three events, one of several tokens as with --stream-interval, and what comes thereafter."""
    last = [None, None, "stop"]
    parts = [part(*columns) for columns in zip(IDS, LOGPROBS, last, strict=True)]
    parts[0]["prompt_token_ids"] = list(range(100))
    return b"".join([*map(event, parts), *(more or (DONE,))])


def flat(rows):
    return [value for row in rows for value in row]


async def sampled(*pieces: bytes):
    """The sample, and what was told on the way."""
    told = []
    fake = FakeVLLM(answer=lambda _: events(*pieces))
    async with fake.engine() as engine:
        return await engine.sample(asked(), told.append), told


async def refused(*pieces: bytes):
    with pytest.raises((ItemError, Unavailable)) as caught:
        await sampled(*pieces)
    error = caught.value
    return error.problem.type if isinstance(error, ItemError) else error.type


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10_000])
async def test_the_network_may_cut_anywhere(size):
    whole = said()
    sample, told = await sampled(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert sample.token_ids == flat(IDS)
    assert sample.logprobs == flat(LOGPROBS)
    assert sample.finish_reason == "stop"
    assert flat(told) == flat(IDS)
    assert all(told)


async def test_each_event_is_told_when_it_comes():
    _, told = await sampled(*(line + b"\n\n" for line in said().strip().split(b"\n\n")))
    assert told == IDS


async def test_a_line_that_does_not_end_is_not_kept_for_ever():
    endless = b" " * 2**23
    assert await refused(*[endless] * 3) == "engine_failed"


async def test_a_stream_is_asked_for_with_every_parameter():
    fake = FakeVLLM()
    async with fake.engine() as engine:
        await engine.sample(asked(top_k=5))
        await engine.sample(asked(top_k=5), lambda ids: None)
    single, streamed = fake.asked
    assert single["stream"] is False
    assert streamed == single | {"stream": True}


async def test_lines_that_are_no_tokens_are_passed_over():
    usage = b'data: {"choices":[],"usage":{"total_tokens":9}}\n\n'
    empty = event(part([], []))
    sample, told = await sampled(b": keep-alive\n\n", empty, said(b": keep-alive\n\n", usage, DONE))
    assert sample.token_ids == flat(IDS)
    assert all(told)


async def test_lines_that_end_as_on_other_systems():
    sample, _ = await sampled(said().replace(b"\n\n", b"\r\n\r\n"))
    assert sample.token_ids == flat(IDS)


@pytest.mark.parametrize(
    "pieces", [[], [b"<html>"], [DONE], [event(part([5], [-0.5]))], [event(part([5], [-0.5])), DONE]]
)
async def test_a_stream_that_does_not_say_how_it_ended(pieces):
    assert await refused(*pieces) == "engine_down"


@pytest.mark.parametrize(
    ("code", "message", "type"),
    [
        (500, "Internal server error", "engine_down"),
        (503, "EngineCore encountered an issue", "engine_down"),
        (400, "Out of range float values are not JSON compliant", "non_finite_logits"),
        (400, "no", "engine_refused"),
    ],
)
async def test_an_error_in_mid_stream(code, message, type):
    error = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}}).encode()
    assert await refused(event(part([5], [-0.5])), b"data: " + error + b"\n\n", DONE) == type


@pytest.mark.parametrize(
    ("data", "type"),
    [
        (b"data: {\n\n", "engine_failed"),
        (b"data: 7\n\n", "engine_failed"),
        (b'data: {"choices": [{}]}\n\n', "engine_failed"),
        (b'data: {"error": "no"}\n\n', "engine_failed"),
        (event(part([5, 6], [-0.5], "stop")), "engine_failed"),
        (event(part(["5"], ["low"], "stop")), "engine_failed"),
        (event(part([5], [None], "stop")), "non_finite_logits"),
        (event(part([5], [-0.5], "abort")), "engine_down"),
        (event(part([5], [-0.5], "error")), "engine_failed"),
        (event(part([5], [-0.5], "stop") | {"logprobs": None}), "engine_failed"),
    ],
)
async def test_events_that_cannot_be_used(data, type):
    assert await refused(data, DONE) == type


async def test_a_stream_that_is_refused_before_it_begins():
    body = {"error": {"message": "too long", "param": "input_tokens", "code": 400}}
    fake = FakeVLLM(answer=lambda _: httpx.Response(400, json=body))
    async with fake.engine() as engine:
        with pytest.raises(ItemError) as caught:
            await engine.sample(asked(), lambda ids: None)
    assert caught.value.problem.type == "context_overflow"


async def test_whoever_watches_may_break_off():
    def watch(ids):
        raise LookupError("enough")

    fake = FakeVLLM(answer=lambda _: events(said()))
    async with fake.engine() as engine:
        with pytest.raises(LookupError):
            await engine.sample(asked(), watch)
        told = []
        await engine.sample(asked(), told.append)
    assert flat(told) == flat(IDS)


def test_tokens_are_told_once():
    stream = Stream()
    assert [stream.feed(event(part([token], [-0.5]))) for token in (5, 6, 7)] == [[5], [6], [7]]
    assert stream.feed(event(part([8], [-0.5], "length"))) == [8]
    assert stream.choice().token_ids == [5, 6, 7, 8]
