"""Following a build from afar: its stream, what breaks it off, asking where there is none; and the smaller calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import httpx
import pytest

from rlt_client import AsyncJobsClient, JobsClient
from rlt_client import jobs as jobs_module
from rlt_client.errors import Conflict, NotFound, ProtocolError, TransportError
from rlt_client.jobs import StreamSilent
from rlt_client.schemas.builds import (
    Build,
    BuildEvent,
    BuildRequest,
    BuildState,
    RescoreRequest,
    RetryRequest,
    Selection,
    SelectionMode,
)
from rlt_client.schemas.common import GenStatus, ScoreStatus

COUNTS = {
    **{"problems": 1, "samples": 2, "missing": 0, "gen": {}, "score": {}, "prompt_tokens": 0, "completion_tokens": 0},
    **{"bad_rows": 0, "shards": {}},
}


def a_build(state: str = "running", id: int = 1) -> dict[str, Any]:
    empty = ["tokens_per_second", "eta_seconds", "scorer", "version", "error", "started_at", "finished_at"]
    given = {"id": id, "dataset": "d", "kind": "generate", "state": state, "n": 2, "priority": 0, "request": {}}
    return given | {"counts": COUNTS, "created_at": "2026-11-21T00:00:00Z"} | dict.fromkeys(empty)


def frame(name: str, content: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()


def event(id: int) -> bytes:
    return frame("event", {"id": id, "at": "2026-11-21T00:00:00Z", "kind": "bad_row", "line": id, "detail": "x"})


class Broken(httpx.AsyncByteStream):
    """Frames, then the connection breaks."""

    def __init__(self, *frames: bytes) -> None:
        self._frames = frames

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for each in self._frames:
            yield each
        raise httpx.RemoteProtocolError("peer closed connection")


class Endless(httpx.AsyncByteStream):
    """Frames, then nothing."""

    def __init__(self, *frames: bytes) -> None:
        self._frames = frames

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for each in self._frames:
            yield each
        await asyncio.Event().wait()


def streamed(*frames: bytes) -> httpx.Response:
    return httpx.Response(200, content=b"".join(frames), headers={"content-type": "text/event-stream"})


def reply(stream: httpx.AsyncByteStream) -> httpx.Response:
    return httpx.Response(200, stream=stream, headers={"content-type": "text/event-stream"})


Answer = httpx.Response | dict[str, Any]


class Service:
    """Answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        answer = self.answers.pop(0)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    def client(self) -> AsyncJobsClient:
        return AsyncJobsClient("http://jobs", transport=httpx.MockTransport(self), deadline=60)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "AGAIN", 0.0)
    monkeypatch.setattr(jobs_module, "FIRST", 0.2)


async def test_a_stream_gives_builds_and_events_until_it_is_done() -> None:
    service = Service(
        streamed(
            frame("progress", a_build()), event(4), b": ping\n\n", frame("weather", {}), frame("done", a_build("done"))
        )
    )
    async with service.client() as jobs:
        news = [each async for each in jobs.stream(1, last_event=3)]
    assert [type(each) for each in news] == [Build, BuildEvent, Build]
    assert isinstance(news[-1], Build)
    assert news[-1].state is BuildState.done
    assert (service.asked[0].url.path, service.asked[0].headers["last-event-id"]) == ("/builds/1/stream", "3")


async def test_a_stream_that_breaks_off_is_taken_up_behind_the_last_event() -> None:
    service = Service(
        reply(Broken(frame("progress", a_build()), event(7))),
        httpx.Response(503, json={"type": "unavailable", "title": "restarting"}),
        streamed(frame("progress", a_build())),  # a server that stops ends its streams
        streamed(event(8), frame("done", a_build("done"))),
    )
    async with service.client() as jobs:
        events = [each.id async for each in jobs.stream(1) if isinstance(each, BuildEvent)]
    assert events == [7, 8]
    assert [request.headers.get("last-event-id") for request in service.asked] == [None, "7", "7", "7"]


async def test_watching_gives_the_builds_of_the_stream() -> None:
    frames = (frame("progress", a_build(each)) for each in ("importing", "failed"))
    service = Service(streamed(*frames, event(1), frame("done", a_build("failed"))))
    async with service.client() as jobs:
        assert [build.state async for build in jobs.watch(1)] == [BuildState.importing, BuildState.failed]


NO_STREAM: dict[str, Callable[[], httpx.Response]] = {
    "an older service": lambda: httpx.Response(404, json={"type": "not_found", "title": "there is no such path"}),
    "a proxy's page": lambda: httpx.Response(200, text="<html>"),
    "a proxy that holds events back": lambda: reply(Endless()),
}


@pytest.mark.parametrize("what", NO_STREAM)
async def test_without_a_stream_watching_asks_and_sees_it_through_an_outage(what: str) -> None:
    polled = [a_build("importing"), httpx.Response(503), a_build("finishing"), a_build("done")]
    service = Service(NO_STREAM[what](), *polled)
    async with service.client() as jobs:
        seen = [build.state async for build in jobs.watch(1, every=0.001)]
    assert seen == [BuildState.importing, BuildState.finishing, BuildState.done]


async def test_a_build_that_is_not_there_is_said_to_be_missing() -> None:
    missing = {"type": "not_found", "title": "no", "detail": "there is no build 1"}
    service = Service(httpx.Response(404, json=missing), httpx.Response(404, json=missing))
    async with service.client() as jobs:
        with pytest.raises(NotFound, match="there is no build 1"):
            [each async for each in jobs.watch(1)]


async def test_silence_and_nonsense_are_errors_of_the_stream() -> None:
    async with Service(reply(Endless())).client() as jobs:
        with pytest.raises(StreamSilent):
            [each async for each in jobs.stream(1)]
    async with Service(streamed(frame("progress", {"id": "x"}))).client() as jobs:
        with pytest.raises(ProtocolError, match="progress"):
            [each async for each in jobs.stream(1)]


async def test_a_stream_that_falls_silent_later_is_taken_up_again() -> None:
    service = Service(reply(Endless(frame("progress", a_build()))), streamed(frame("done", a_build("done"))))
    async with service.client() as jobs:
        states = [each.state async for each in jobs.stream(1, idle=0.1) if isinstance(each, Build)]
    assert states == [BuildState.running, BuildState.done]


def test_leaving_the_blocking_twin_closes_the_connection() -> None:
    """The transport is asked on another thread's loop: the reply must be closed there when one stops iterating."""
    stream = _Watched(frame("progress", a_build()))
    service = Service(reply(stream))
    with JobsClient("http://jobs", transport=httpx.MockTransport(service), deadline=60) as jobs:
        watching = jobs.watch(1)
        assert next(watching).state is BuildState.running
        watching.close()
        assert stream.closed


class _Watched(Endless):
    closed = False

    async def aclose(self) -> None:
        self.closed = True


DRY = {
    **{"problems": 3, "samples": 12, "bad_rows": 1, "bad": [], "duplicates": 0, "rows_read": 4, "whole": True},
    **{"prompts": ["p"], "prompt_tokens": None, "completion_tokens": 9, "gpu_hours": None, "tokens_per_second": None},
    "shards": 1,
}
REPORT = {
    **{"build": 1, "counts": COUNTS, "generation": [], "scoring": [], "flags": {}, "deciles": []},
    **{"rewards": {}, "completion_tokens": {}},
}


async def test_the_smaller_calls_ask_for_what_they_say() -> None:
    upload = UUID(int=1)
    gone = httpx.Response(204)
    service = Service(
        DRY, a_build(), a_build(), a_build(), a_build(), REPORT, gone, httpx.Response(204), httpx.Response(204)
    )
    request = BuildRequest.model_validate({"dataset": "d", "source": {"path": "/data/p.csv"}})
    async with service.client() as jobs:
        assert (await jobs.dry_run(request)).samples == 12
        await jobs.rescore(1, RescoreRequest(student="other"))
        await jobs.rerank(5, Selection(mode=SelectionMode.all, without_flags=["leak"]), idempotency_key="mine")
        await jobs.retry(1, RetryRequest(gen_status=[GenStatus.truncated], max_tokens=9))
        await jobs.set_priority(1, 9)
        assert (await jobs.report(1)).share == 1.0
        await jobs.delete_build(1)
        await jobs.delete_version(5)
        await jobs.delete_upload(upload)
    asked = [(each.method, str(each.url.raw_path.decode())) for each in service.asked]
    assert asked == [
        ("POST", "/builds?dry_run=true"),
        ("POST", "/builds/1/rescore"),
        ("POST", "/versions/5/rerank"),
        ("POST", "/builds/1/retry"),
        ("POST", "/builds/1/priority"),
        ("GET", "/builds/1/report"),
        ("DELETE", "/builds/1"),
        ("DELETE", "/versions/5"),
        ("DELETE", f"/uploads/{upload}"),
    ]
    bodies = [json.loads(each.content) for each in service.asked[:5]]
    assert bodies[0]["source"]["path"] == "/data/p.csv"
    assert bodies[1]["student"] == "other"
    assert bodies[2]["selection"]["without_flags"] == ["leak"]
    assert bodies[3] == {"gen_status": ["truncated"], "score_errors": False, "max_tokens": 9}
    assert bodies[4] == {"priority": 9}
    assert service.asked[2].headers["idempotency-key"] == "mine"
    assert service.asked[1].headers["idempotency-key"]


async def test_a_refusal_of_a_retry_says_why() -> None:
    refusal = httpx.Response(409, json={"type": "nothing_to_retry", "title": "no", "detail": "no sample is truncated"})
    async with Service(refusal).client() as jobs:
        with pytest.raises(Conflict, match="no sample is truncated") as raised:
            await jobs.retry(1)
    assert raised.value.type == "nothing_to_retry"


async def test_samples_can_be_narrowed_and_uploads_listed() -> None:
    upload = {"id": str(UUID(int=1)), "bytes": 3, "sha256": "0", "created_at": "2026-11-21T00:00:00Z"}
    service = Service({"items": [], "next": None}, {"items": [upload], "next": None})
    async with service.client() as jobs:
        found = jobs.samples(1, gen_status=GenStatus.truncated, score_status=ScoreStatus.skipped)
        assert [row async for row in found] == []
        assert [each.id async for each in jobs.uploads()] == [UUID(int=1)]
    params = dict(service.asked[0].url.params)
    assert (params["gen_status"], params["score_status"]) == ("truncated", "skipped")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("p.csv", "text/csv"), ("p.parquet", "application/vnd.apache.parquet"),
        ("p.jsonl", "application/x-ndjson"), ("p", "application/octet-stream"),
    ],
)  # fmt: skip
async def test_an_upload_says_what_it_is(name: str, kind: str, tmp_path: Any) -> None:
    (tmp_path / name).write_bytes(b"abc")
    upload = {"id": str(UUID(int=1)), "bytes": 3, "sha256": "0", "created_at": "2026-11-21T00:00:00Z"}
    service = Service(upload)
    async with service.client() as jobs:
        await jobs.upload(tmp_path / name)
    assert service.asked[0].headers["content-type"] == kind


def test_the_blocking_twin_has_every_call() -> None:
    public = {name for name in vars(AsyncJobsClient) if not name.startswith("_")}
    assert public <= set(dir(JobsClient))


async def test_watching_gives_up_on_a_service_that_does_not_come_back() -> None:
    came = False

    async def answer(_request: httpx.Request) -> httpx.Response:
        nonlocal came
        if came:
            raise httpx.ConnectError("refused")
        came = True
        return reply(Broken(frame("progress", a_build())))

    transport = httpx.MockTransport(answer)
    async with AsyncJobsClient("http://jobs", transport=transport, deadline=60, patience=0.1) as jobs:
        with pytest.raises(TransportError, match="refused"):
            async with asyncio.timeout(60):
                [each async for each in jobs.watch(1)]
