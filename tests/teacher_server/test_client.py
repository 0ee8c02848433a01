"""`TeacherClient` against the real server: streams, batches, and what happens to one that is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from fastapi import FastAPI

from rlt_client import (
    AsyncTeacherClient,
    BatchProblem,
    ExplainBatchRequest,
    ExplainRequest,
    ExplainResponse,
    TeacherClient,
)
from rlt_client.errors import DeadlineExceeded, NotFound, Overloaded
from rlt_client.schemas.explain import Delta, Done, Finished, Scored, Started
from rlt_service.testing import running
from rlt_teacher_server.app import build


@pytest.fixture
def request_(problem: dict[str, str]) -> ExplainRequest:
    return ExplainRequest(**problem, n=4, seed=5, max_tokens=27, score=True)


def essence(reply: ExplainResponse) -> Any:
    return [(each.index, each.text, each.gen_status, each.seed) for each in reply.explanations], reply.best, reply.seed


async def test_a_stream_ends_with_the_reply(teacher_url: str, request_: ExplainRequest) -> None:
    async with AsyncTeacherClient(teacher_url) as teacher:
        events = [event async for event in teacher.explain_stream(request_)]
        whole = await teacher.explain(request_)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Done)
    assert essence(events[-1].response) == essence(whole)
    finished = {event.explanation.index: event.explanation for event in events if isinstance(event, Finished)}
    assert sorted(finished) == sorted(event.index for event in events if isinstance(event, Scored)) == [0, 1, 2, 3]
    for index, explanation in finished.items():
        deltas = [event for event in events if isinstance(event, Delta) and event.index == index]
        assert sum(event.tokens for event in deltas) == explanation.usage.completion_tokens
        if explanation.text is not None:
            assert "".join(event.text for event in deltas) == explanation.text


def test_the_blocking_client_streams_and_does_batches(teacher_url: str, request_: ExplainRequest) -> None:
    problems = [BatchProblem(id="a", question=request_.question, answer=request_.answer, seed=5)] * 2
    with TeacherClient(teacher_url) as teacher:
        *_, last = teacher.explain_stream(request_)
        batch = teacher.explain_batch(ExplainBatchRequest(problems=problems, n=4, max_tokens=27, score=True))
    assert isinstance(last, Done)
    assert (batch.succeeded, [item.id for item in batch.items]) == (2, ["a", "a"])
    for item in batch.items:
        assert item.result is not None
        assert essence(item.result) == essence(last.response)


async def test_a_refusal_comes_before_the_first_event(teacher_url: str, request_: ExplainRequest) -> None:
    asked = request_.model_copy(update={"policy": "nobody"})
    async with AsyncTeacherClient(teacher_url) as teacher:
        with pytest.raises(NotFound, match="no such policy") as caught:
            await anext(teacher.explain_stream(asked))
    assert [error.pointer for error in caught.value.errors] == ["/policy"]


@pytest.fixture(scope="module")
def app(settings: Callable[..., Any]) -> FastAPI:
    return build(settings())


@pytest.fixture(scope="module")
def watched(app: FastAPI) -> Iterator[str]:
    with running(app) as url:
        yield url


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60  # far more than one step of the tiny model, on busy cores too
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def long(problem: dict[str, str]) -> ExplainRequest:
    return ExplainRequest(**problem, n=256, temperature=2)


@pytest.mark.usefixtures("unending")
def test_leaving_a_stream_ends_the_work(app: FastAPI, watched: str, long: ExplainRequest) -> None:
    admission = app.state.chat._sampler.admission
    with TeacherClient(watched) as teacher, closing(teacher.explain_stream(long)) as events:
        assert isinstance(next(events), Started)
        assert admission.inside == 256
        events.close()
        until(lambda: admission.inside == 0)


@pytest.mark.usefixtures("unending")
async def test_a_deadline_ends_the_work_too(app: FastAPI, watched: str, long: ExplainRequest) -> None:
    admission = app.state.chat._sampler.admission
    async with AsyncTeacherClient(watched) as teacher:
        with pytest.raises(DeadlineExceeded):
            _ = [event async for event in teacher.explain_stream(long, deadline=0.05)]
    await asyncio.to_thread(until, lambda: admission.inside == 0)


async def test_a_full_server_is_asked_again_until_there_is_room(
    app: FastAPI, watched: str, request_: ExplainRequest
) -> None:
    admission = app.state.chat._sampler.admission
    asked = request_.model_copy(update={"score": False})
    async with AsyncTeacherClient(watched) as teacher, AsyncTeacherClient(watched, patience=0) as hasty:
        with admission.admit(admission.capacity):
            with pytest.raises(Overloaded):
                await anext(hasty.explain_stream(asked))
            waiting = asyncio.create_task(anext(teacher.explain_stream(asked)))
            await asyncio.sleep(0.2)
            assert not waiting.done()
        assert isinstance(await waiting, Started)
