"""Streamed chat replies: over HTTP with the real model, and event by event with an engine that follows a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from plugins.scripted import CLOSE, SEED, Asked, Scene

from rlt_client.errors import ItemError, Unavailable
from rlt_client.schemas.common import Problem
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.openai.reading import read
from rlt_teacher_server.openai.requests import ChatRequest
from rlt_teacher_server.openai.service import ChatService


def parts(text: str) -> list[Any]:
    """What the `data:` lines hold, up to `[DONE]`, which must be the last; pings stand between them."""
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def choices(chunks: list[Any], index: int) -> list[Any]:
    return [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


def text_of(chunks: list[Any], index: int) -> str:
    return "".join(choice["delta"].get("content", "") for choice in choices(chunks, index))


# Over HTTP


def test_a_stream_writes_what_a_whole_reply_says(chat):
    whole = {choice["index"]: choice for choice in chat(n=3, seed=1).json()["choices"]}
    reply = chat(n=3, seed=1, stream=True)
    chunks = parts(reply.text)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    for index in range(3):
        first, *middle, last = choices(chunks, index)
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert all(list(each["delta"]) == ["content"] and each["finish_reason"] is None for each in middle)
        assert (last["delta"], last["finish_reason"]) == ({}, "stop")
        assert text_of(chunks, index) == whole[index]["message"]["content"]
        assert last["rlt"] == whole[index]["rlt"]
    assert all(chunk["choices"] for chunk in chunks)


def test_usage_is_told_at_the_end_if_asked_for(chat):
    whole = chat(n=2, seed=1).json()
    *chunks, last = parts(chat(n=2, seed=1, stream=True, stream_options={"include_usage": True}).text)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert last["rlt"]["format"] == whole["rlt"]["format"]
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)


def test_scores_come_with_the_last_chunk_of_their_choice(chat):
    whole = {choice["index"]: choice for choice in chat(n=3, seed=5, rlt={"score": True}).json()["choices"]}
    chunks = parts(chat(n=3, seed=5, stream=True, rlt={"score": True}).text)
    for index in range(3):
        *_, last = choices(chunks, index)
        assert last["finish_reason"] == "stop"
        assert last["rlt"]["reward"] == pytest.approx(whole[index]["rlt"]["reward"], abs=1e-5)


def test_log_probs_come_with_the_last_chunk_of_their_choice(chat):
    [whole] = chat(seed=5, logprobs=True).json()["choices"]
    *before, last = choices(parts(chat(seed=5, stream=True, logprobs=True).text), 0)
    assert last["logprobs"] == whole["logprobs"]
    assert all(each["logprobs"] is None for each in before)


def test_what_is_cut_off_says_so_at_the_end(chat):
    chunks = parts(chat(temperature=0, max_tokens=2, stream=True).text)
    *_, last = choices(chunks, 0)
    assert last["finish_reason"] == "length"
    assert "its budget of tokens ran out" in last["delta"]["refusal"]


@pytest.mark.usefixtures("unending")
def test_who_hangs_up_ends_the_work(settings, conversation):
    app = build(settings())
    with running(app) as url:
        admission = app.state.chat._sampler.admission
        body = {"model": "teacher", "messages": conversation, "n": 256, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as reply:
            frames = reply.iter_bytes()  # an iterator that nobody keeps closes the connection
            next(frames)
            assert admission.inside == 256
        _until(lambda: admission.inside == 0)


def _until(true: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# By a script


async def told(scene: Scene, **given: Any) -> list[Any]:
    """Chunks; an error in the stream is the last."""
    messages = [{"role": "user", "content": "Two plus two?"}, {"role": "assistant", "content": "4"}]
    asked = read(ChatRequest(**{"model": "teacher", "messages": messages, "seed": SEED, "stream": True} | given))
    chat = ChatService(scene.service, scene.service._catalog, scene.service._sampler)
    stream, frames = await chat.stream(asked)
    async with aclosing(stream):
        text = b"".join([frame async for frame in frames]).decode()
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line and not line.startswith(":")]
    done = [event for event in events if event == "[DONE]"]
    found = [json.loads(event) for event in events if event != "[DONE]"]
    assert len(done) == (0 if found and "error" in found[-1] else 1)
    assert not scene.inside
    return found


async def slowly(_sample: Asked, _written: int) -> None:
    """As slow as the interval at which a stream is written."""
    await asyncio.sleep(0.02)


HELD = "\n\n"  # the end of the format's prefill: of the explanation, but never sampled
LONG = "One and one and one and one and one"


async def test_a_sample_that_begins_anew_goes_on_where_it_was():
    scene = Scene(script=lambda _: LONG + CLOSE, pace=slowly, restarts={0: 12})
    chunks = await told(scene)
    assert text_of(chunks, 0) == HELD + LONG
    assert len(choices(chunks, 0)) > 3
    assert choices(chunks, 0)[-1]["finish_reason"] == "stop"


async def test_a_sample_that_begins_anew_and_reads_differently_ends_the_stream():
    tries: Iterator[str] = iter([LONG, "Two and two"])
    scene = Scene(script=lambda _: next(tries) + CLOSE, pace=slowly, restarts={0: 12})
    *chunks, last = await told(scene)
    assert (HELD + LONG).startswith(text_of(chunks, 0))
    assert last["error"]["code"] == "sample_restarted"
    assert "ask again" in last["error"]["message"]


async def test_a_shorter_second_try_is_a_different_one():
    tries = iter([LONG, LONG[:4]])
    scene = Scene(script=lambda _: next(tries) + CLOSE, pace=slowly, restarts={0: 12})
    *_, last = await told(scene)
    assert last["error"]["code"] == "sample_restarted"


async def test_the_text_is_that_of_the_explanation_whatever_its_characters():
    texts = ["é∑ 漢字 🙂 " * 3, " a\n\n<b> ", "x"]
    scene = Scene(script=lambda sample: texts[sample.place] + CLOSE, budget=300)
    chunks = await told(scene, n=3, logprobs=True)
    for index, text in enumerate(texts):
        assert text_of(chunks, index) == HELD + text
        content = choices(chunks, index)[-1]["logprobs"]["content"]
        assert "".join(token["token"] for token in content) == text
        assert len(content) == len(scene.ids(text))
        assert {token["logprob"] for token in content} == {-0.5}


async def test_what_is_not_closed_is_withheld_as_far_as_it_can_be():
    scene = Scene(script=lambda _: "no closing tag")
    chunks = await told(scene)
    *_, last = choices(chunks, 0)
    assert last["finish_reason"] == "content_filter"
    assert "is not closed" in last["delta"]["refusal"]
    assert last["rlt"]["gen_status"] == "malformed"


def failing(*places: int) -> Callable[[Asked], str | ItemError]:
    problem = Problem(type="engine_failed", title="t", detail="two engines died")
    return lambda sample: ItemError(problem) if sample.place in places else f"fine {sample.place}{CLOSE}"


async def test_a_sample_that_failed_among_others_is_a_refused_choice():
    chunks = await told(Scene(script=failing(1)), n=3)
    assert [text_of(chunks, index) for index in range(3)] == [f"{HELD}fine 0", "", f"{HELD}fine 2"]
    *_, last = choices(chunks, 1)
    assert last["finish_reason"] == "content_filter"
    assert last["delta"]["refusal"] == "There is no explanation: two engines died"
    assert last["rlt"]["error"]["type"] == "engine_failed"


async def test_a_request_whose_samples_all_failed_has_failed():
    *chunks, last = await told(Scene(script=failing(0, 1)), n=2)
    assert not any(choice["finish_reason"] for chunk in chunks for choice in chunk["choices"])
    assert last["error"] == {
        "message": "two engines died",
        "type": "server_error",
        "param": None,
        "code": "engine_failed",
    }


async def test_an_engine_that_goes_down_ends_the_stream():
    def gone(_: Asked) -> Unavailable:
        return Unavailable("the engine is down", type="engine_down")

    *_, last = await told(Scene(script=gone))
    assert (last["error"]["code"], last["error"]["type"]) == ("engine_down", "server_error")


async def test_a_score_that_failed_is_no_reward():
    chunks = await told(Scene(reward=lambda text: None if text.endswith("1") else -2.0), n=2, rlt={"score": True})
    rewards = [choices(chunks, index)[-1]["rlt"]["reward"] for index in range(2)]
    assert rewards == [-2.0, None]
    assert choices(chunks, 1)[-1]["rlt"]["score"]["error"]["type"] == "kl_unavailable"


async def test_pings_keep_a_silent_stream_open(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlt_teacher_server.openai.service.PING_S", 0.01)

    async def late(_sample: Asked, _written: int) -> None:
        await asyncio.sleep(0.1)

    scene = Scene(script=lambda _: f"x{CLOSE}", pace=late)
    asked = read(ChatRequest(model="teacher", messages=[{"role": "user", "content": "q"}], answer="a", stream=True))
    chat = ChatService(scene.service, scene.service._catalog, scene.service._sampler)
    stream, frames = await chat.stream(asked)
    async with aclosing(stream):
        written = [frame async for frame in frames]
    assert b": ping\n\n" in written
