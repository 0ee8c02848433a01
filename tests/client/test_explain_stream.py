"""`explain_stream` and `explain_batch`, asynchronous and blocking, over every way in which a stream may go."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from typing import Any

import httpx
import pytest

from rlt_client import AsyncTeacherClient, ExplainRequest, TeacherClient
from rlt_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProtocolError,
    TransportError,
    Unavailable,
)
from rlt_client.schemas.common import FormatRef, ModelRef
from rlt_client.schemas.explain import BatchProblem, Delta, Done, ExplainBatchRequest, ExplainEvent, Failed, Started
from rlt_client.testing import FakePlatform

REQUEST = ExplainRequest(question="q", answer="a", n=3, score=True, seed=7)
STARTED = Started(
    samples=1,
    policies=[ModelRef(name="p", revision="r")],
    format=FormatRef(name="f", version="1", hash="h"),
    seed=1,
    prompt_tokens=3,
)


def sse(event: ExplainEvent) -> bytes:
    return f"event: {event.event}\ndata: {event.model_dump_json(exclude_none=True)}\n\n".encode()


def done() -> bytes:
    return sse(Done(response=FakePlatform().explain(REQUEST)))


Reply = Callable[[], AsyncIterator[bytes]]


def pieces(*given: bytes) -> Reply:
    async def flow() -> AsyncIterator[bytes]:
        for piece in given:
            yield piece

    return flow


class Streaming(httpx.AsyncBaseTransport):
    """Answers each call with the next of the replies; the last one answers all further calls."""

    def __init__(self, *replies: Reply | httpx.Response) -> None:
        self.replies = list(replies)
        self.calls = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = self.replies[min(self.calls, len(self.replies) - 1)]
        self.calls += 1
        if isinstance(reply, httpx.Response):
            return reply
        return httpx.Response(200, headers={"content-type": "text/event-stream; charset=utf-8"}, content=reply())


async def collect(transport: httpx.AsyncBaseTransport, **options: Any) -> list[ExplainEvent]:
    async with AsyncTeacherClient("http://fake", transport=transport) as teacher:
        return [event async for event in teacher.explain_stream(REQUEST, **options)]


async def test_the_events_of_a_call_end_with_what_it_would_have_answered() -> None:
    fake = FakePlatform(explain=lambda _, i: f" two  words\n\u2028 and {i}")
    events = await collect(fake.transport())
    assert [e.event for e in events[:1]] == ["started"]
    texts = {index: "".join(e.text for e in events if isinstance(e, Delta) and e.index == index) for index in range(3)}
    assert texts == {index: f" two  words\n\u2028 and {index}" for index in range(3)}
    async with AsyncTeacherClient("http://fake", transport=fake.transport()) as teacher:
        assert events[-1] == Done(response=await teacher.explain(REQUEST))
    streamed, whole = fake.requests
    assert isinstance(streamed, ExplainRequest)
    assert isinstance(whole, ExplainRequest)
    assert (streamed.stream, whole.stream) == (True, False)


async def test_explain_asks_for_one_reply_even_where_the_request_says_stream() -> None:
    fake = FakePlatform()
    async with AsyncTeacherClient("http://fake", transport=fake.transport()) as teacher:
        reply = await teacher.explain(REQUEST.model_copy(update={"stream": True}))
    assert len(reply.explanations) == 3


async def test_events_are_given_out_as_they_come() -> None:
    gate = asyncio.Event()

    async def flow() -> AsyncIterator[bytes]:
        yield sse(STARTED)
        await gate.wait()
        yield done()

    async with AsyncTeacherClient("http://fake", transport=Streaming(flow)) as teacher:
        events = teacher.explain_stream(REQUEST)
        assert await anext(events) == STARTED
        gate.set()
        assert (await anext(events)).event == "done"
        assert await anext(events, None) is None


async def test_what_is_unknown_or_a_ping_is_left_out() -> None:
    news = b'event: thought\ndata: {"event": "thought"}\n\n'
    anonymous = b'data: {"event": "delta"}\n\n'
    grown = sse(STARTED).replace(b'"samples"', b'"mood": "good", "samples"')
    events = await collect(Streaming(pieces(b": ping\n\n", news, grown, anonymous, b": ping\n\n", done())))
    assert [event.event for event in events] == ["started", "done"]
    assert events[0] == STARTED


async def test_a_failure_after_the_first_event_is_raised_as_what_it_is() -> None:
    problem = Unavailable("the engine is gone", type="engine_down").problem()
    transport = Streaming(pieces(sse(STARTED), sse(Failed(problem=problem))))
    with pytest.raises(Unavailable, match="the engine is gone") as caught:
        await collect(transport)
    assert caught.value.type == "engine_down"
    assert transport.calls == 1


@pytest.mark.parametrize("given", [(), (b": ping\n\n",), (sse(STARTED),), (sse(STARTED), done()[:-1])])
async def test_a_stream_that_just_ends_is_an_error(given: tuple[bytes, ...]) -> None:
    transport = Streaming(pieces(*given))
    with pytest.raises(TransportError, match="broke off before its last event"):
        await collect(transport)
    assert transport.calls == 1


async def test_a_connection_that_breaks_is_an_error_and_not_tried_again() -> None:
    async def flow() -> AsyncIterator[bytes]:
        yield sse(STARTED)
        raise httpx.ReadError("reset by peer")

    transport = Streaming(flow)
    with pytest.raises(TransportError, match="reset by peer"):
        await collect(transport)
    assert transport.calls == 1


async def test_a_refusal_is_tried_again_until_the_reply_begins() -> None:
    busy = httpx.Response(
        429, headers={"retry-after": "0.01"}, content=Overloaded("full").problem().model_dump_json(exclude_none=True)
    )
    transport = Streaming(busy, busy, pieces(sse(STARTED), done()))
    assert [event.event for event in await collect(transport)] == ["started", "done"]
    assert transport.calls == 3


async def test_a_refusal_is_raised_before_the_first_event() -> None:
    fake = FakePlatform(refuse=lambda _: NotFound("no such policy", type="policy_not_found"))
    with pytest.raises(NotFound, match="no such policy"):
        await collect(fake.transport())


async def test_another_kind_of_reply_is_not_the_protocol() -> None:
    page = httpx.Response(200, html="<p>hello")
    with pytest.raises(ProtocolError, match="text/html; charset=utf-8 instead of text/event-stream"):
        await collect(Streaming(page))


@pytest.mark.parametrize("data", [b"[1]", b"not json", b'{"event": "started"}', b'{"event": "delta", "index": "x"}'])
async def test_an_event_that_is_not_the_protocols_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="`started` is not the protocol's"):
        await collect(Streaming(pieces(b"event: started\ndata: " + data + b"\n\n")))


async def test_bytes_that_are_no_text_are_an_error() -> None:
    with pytest.raises(ProtocolError, match="not UTF-8"):
        await collect(Streaming(pieces(b"event: started\ndata: \xff\n\n")))


async def test_silence_is_noticed_and_pings_are_no_silence() -> None:
    async def flow() -> AsyncIterator[bytes]:
        yield sse(STARTED)
        for _ in range(6):
            await asyncio.sleep(0.3)
            yield b": ping\n\n"
        await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(TransportError, match=r"not a byte for 1\.2 s") as caught:
        await collect(Streaming(flow), idle=1.2)
    assert not isinstance(caught.value, DeadlineExceeded)
    assert 2.9 < time.monotonic() - began < 50


async def test_the_deadline_is_that_of_the_whole_stream() -> None:
    async def flow() -> AsyncIterator[bytes]:
        while True:
            yield b": ping\n\n"
            await asyncio.sleep(0.02)

    with pytest.raises(DeadlineExceeded, match="did not end within its deadline"):
        await collect(Streaming(flow), deadline=0.3)


async def test_a_caller_may_take_longer_over_an_event_than_the_idle_time() -> None:
    async with AsyncTeacherClient("http://fake", transport=FakePlatform().transport()) as teacher:
        seen = 0
        async for _ in teacher.explain_stream(ExplainRequest(question="q", answer="a"), idle=0.05):
            await asyncio.sleep(0.1 if seen == 0 else 0)
            seen += 1
    assert seen > 2


@asynccontextmanager
async def endless(gone: Callable[[], None]) -> AsyncIterator[str]:
    """A server that begins a stream and never ends it; `gone` is called when its caller hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + sse(STARTED))
        while await reader.read(65536):
            pass
        gone()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_closing_the_iterator_hangs_up() -> None:
    gone = asyncio.Event()
    async with endless(gone.set) as url, AsyncTeacherClient(url) as teacher:
        async with aclosing(teacher.explain_stream(REQUEST)) as events:
            async for event in events:
                assert event == STARTED
                break
        await asyncio.wait_for(gone.wait(), 60)


async def test_cancelling_the_caller_hangs_up() -> None:
    gone = asyncio.Event()
    first = asyncio.Event()

    async def read(teacher: AsyncTeacherClient) -> None:
        async for _ in teacher.explain_stream(REQUEST):
            first.set()

    async with endless(gone.set) as url, AsyncTeacherClient(url) as teacher:
        reading = asyncio.create_task(read(teacher))
        await asyncio.wait_for(first.wait(), 60)
        reading.cancel()
        await asyncio.wait_for(gone.wait(), 60)
        with pytest.raises(asyncio.CancelledError):
            await reading


# Blocking


@pytest.fixture
def blocking() -> Iterator[TeacherClient]:
    with TeacherClient("http://fake", transport=FakePlatform().transport()) as teacher:
        yield teacher


def test_the_blocking_iterator_gives_the_same_events(blocking: TeacherClient) -> None:
    events = list(blocking.explain_stream(REQUEST))
    assert events == asyncio.run(collect(FakePlatform().transport()))


@pytest.mark.parametrize("by", ["closing", "collecting"])
def test_leaving_the_blocking_iterator_hangs_up(by: str) -> None:
    gone, stop, address = threading.Event(), threading.Event(), []

    async def serve() -> None:
        async with endless(gone.set) as url:
            address.append(url)
            await asyncio.to_thread(stop.wait, 10)

    server = threading.Thread(target=asyncio.run, args=(serve(),))
    server.start()
    while not address:
        time.sleep(0.01)
    with TeacherClient(address[0]) as teacher:
        events = teacher.explain_stream(REQUEST)
        if by == "closing":
            with closing(events):
                assert next(events) == STARTED
        else:
            assert list(itertools.islice(events, 1)) == [STARTED]
            del events
        assert gone.wait(60)
    stop.set()
    server.join()


def test_an_iterator_outlives_its_client_quietly() -> None:
    with TeacherClient("http://fake", transport=FakePlatform().transport()) as teacher:
        events = teacher.explain_stream(REQUEST)
        next(events)
    events.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        next(teacher.explain_stream(REQUEST))


# Batches


async def test_a_batch_keeps_its_order_and_its_failures() -> None:
    def explain(request: ExplainRequest, index: int) -> str:
        if request.question == "bad":
            raise InvalidRequest("nothing but white space", type="empty_answer")
        return f"{request.question}{index}"

    fake = FakePlatform(explain=explain)
    problems = [BatchProblem(id=q, question=q, answer="a") for q in ("one", "bad", "two")]
    async with AsyncTeacherClient("http://fake", transport=fake.transport()) as teacher:
        reply = await teacher.explain_batch(ExplainBatchRequest(problems=problems, n=2, score=True))
    assert [(item.index, item.id) for item in reply.items] == [(0, "one"), (1, "bad"), (2, "two")]
    assert (reply.succeeded, reply.failed) == (2, 1)
    assert reply.items[1].error is not None
    assert reply.items[1].error.type == "empty_answer"
    assert reply.items[2].result is not None
    assert {each.text for each in reply.items[2].result.explanations} == {"two0", "two1"}


def test_the_blocking_batch(blocking: TeacherClient) -> None:
    request = ExplainBatchRequest(problems=[BatchProblem(question="q", answer="a")])
    reply = blocking.explain_batch(request)
    assert reply.succeeded == 1


# What the stand-in keeps


async def test_the_stand_in_ranks_filters_and_compares() -> None:
    rewards = {"one": -3.0, "two": -1.0, "three": -2.0, "four": -4.0}
    fake = FakePlatform(reward=lambda item: rewards[item.explanation or ""], explain=lambda _, i: list(rewards)[i])
    request = ExplainRequest(question="q", answer="a", n=2, policies=["a", "b"], score=True, min_reward=-3)
    reply = fake.explain(request)
    assert [(e.text, e.policy and e.policy.name) for e in reply.explanations] == [
        ("two", "a"),
        ("three", "b"),
        ("one", "a"),
    ]
    assert (reply.best, reply.dropped.min_reward) == (1, 1)
    assert reply.comparison is not None
    assert [(each.policy.name, each.mean_reward, each.best, each.wins) for each in reply.comparison] == [
        ("a", -2.0, 1, 1),
        ("b", -3.0, 2, 1),
    ]
    best = fake.explain(request.model_copy(update={"keep": "best"}))
    assert [each.text for each in best.explanations] == ["two"]
    assert best.dropped.not_best == 2
