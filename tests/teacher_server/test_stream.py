"""`POST /explain` with `stream: true`, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from plugins.scripted import CLOSE, SEED, Scene

from rlt_service.app import create_app
from rlt_service.draining import Drainable, DrainingServer
from rlt_service.server import listen
from rlt_service.settings import ServerSettings
from rlt_service.testing import running
from rlt_teacher_server import sse
from rlt_teacher_server.endpoints import router
from rlt_teacher_server.engine.decoding import Decoder
from rlt_teacher_server.openai.errors import OpenAIErrors


def read(lines):
    """(event, data) of each; a line ": ping" as ("ping", None)."""
    name = None
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
        elif line.startswith(":"):
            yield "ping", None


def stream(client, body):
    with client.stream("POST", "/explain", json=body | {"stream": True}) as response:
        assert response.status_code == 200, response.read()
        return response, list(read(response.iter_lines()))


def value(client, name):
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


# The real engine and reward server


def test_a_stream_of_the_real_engine(teacher, problem):
    body = problem | {"n": 3, "score": True, "seed": 5, "max_tokens": 27}
    before = value(teacher, "rlt_teacher_first_token_seconds_count")
    response, events = stream(teacher, body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    names = [name for name, _ in events]
    assert (names[0], names[-1]) == ("started", "done")
    assert names.count("finished") == names.count("scored") == 3
    assert all(data["event"] == name for name, data in events)
    plain = teacher.post("/explain", json=body).json()
    done = events[-1][1]["response"]
    assert same(done, plain)
    for explanation in done["explanations"]:
        deltas = [data for name, data in events if name == "delta" and data["index"] == explanation["index"]]
        assert sum(delta["tokens"] for delta in deltas) == explanation["usage"]["completion_tokens"]
        if explanation["text"] is not None:
            assert "".join(delta["text"] for delta in deltas) == explanation["text"]
    assert value(teacher, "rlt_teacher_first_token_seconds_count") == before + 1
    assert value(teacher, "rlt_teacher_streams ") == 0


def same(one, other):
    """But for the scores' last digits, which depend on what else was in the batch."""
    keys = ("index", "text", "completion", "gen_status", "seed", "usage", "flags")
    rows = [[{key: each[key] for key in keys} for each in reply["explanations"]] for reply in (one, other)]
    return rows[0] == rows[1] and one["best"] == other["best"] and one["usage"] == other["usage"]


@pytest.mark.parametrize(
    ("wrong", "status", "type"),
    [
        ({"question": " "}, 422, "empty_question"),
        ({"policy": "nope"}, 404, "policy_not_found"),
        ({"format": "nope"}, 404, "unknown_format"),
        ({"question": "What is it?"}, 422, "untokenizable"),
        ({"n": 0}, 422, "invalid_request"),
    ],
)
def test_what_is_refused_is_an_ordinary_problem(teacher, problem, wrong, status, type):
    response = teacher.post("/explain", json=problem | {"stream": True} | wrong)
    assert (response.status_code, response.json()["type"]) == (status, type)
    assert response.headers["content-type"] == "application/problem+json"


def test_an_engine_that_is_down_is_an_ordinary_problem(settings, problem):
    from rlt_teacher_server.app import build

    with running(lambda: build(settings(engine="http://127.0.0.1:9"))) as url:
        response = httpx.post(f"{url}/explain", json=problem | {"stream": True}, timeout=60)
    assert (response.status_code, response.json()["type"]) == (503, "engine_down")


def test_a_client_that_leaves_stops_the_engine(teacher, problem, monkeypatch):
    """The engine waits before its first step until the client has left: it would be done before, now and then."""
    sample, left, steps = Decoder.sample, threading.Event(), []

    def held(self, batch):
        steps.append(batch)
        assert left.wait(60)
        sample(self, batch)

    monkeypatch.setattr(Decoder, "sample", held)
    body = problem | {"n": 64, "max_tokens": 240, "temperature": 2.0, "stream": True}
    with teacher.stream("POST", "/explain", json=body) as response:
        names = (name for name, _ in read(response.iter_lines()))
        assert next(names) == "started"
        assert value(teacher, "rlt_teacher_streams ") == 1
        assert value(teacher, "rlt_teacher_samples_inside ") == 64
        until(lambda: at_the_engine(teacher) > 0)
    until(lambda: value(teacher, "rlt_teacher_samples_inside ") == 0)
    until(lambda: value(teacher, "rlt_teacher_streams ") == 0)
    left.set()
    until(lambda: at_the_engine(teacher) == 0)
    assert len(steps) < 10, "of 240"


def at_the_engine(client):
    """By its own gauges."""
    [engine] = client.get("/policies").json()["engines"]
    return engine["running"] + engine["waiting"]


def until(true, seconds=60):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "not in time"
        time.sleep(0.02)


# A scripted engine


class Served:
    """A scene behind HTTP. Its event loop runs in another thread; `let` lets samples go on that wait in `pace`."""

    def __init__(self, scene):
        self.scene = scene
        self.gate = threading.Event()

    def app(self):
        async def ready():
            return {}

        app = create_app(
            title="rlt-teacher-server",
            version="0",
            settings=ServerSettings(),
            routers=[router],
            ready=ready,
            metrics=self.scene.metrics,
        )
        app.state.explainer = self.scene.service
        return app

    async def hold(self, _sample, written):
        """From the second token on."""
        if written >= 1:
            await asyncio.to_thread(self.gate.wait, 30)


@contextmanager
def served(**given):
    scene = Scene(**given)
    served = Served(scene)
    if "pace" not in given:
        scene.pace = served.hold
    with running(served.app()) as url, httpx.Client(base_url=url, timeout=60) as client:
        try:
            yield served, client
        finally:
            served.gate.set()


BODY = {"question": "Two plus two?", "answer": "4", "seed": SEED}
LONG = "".join(f"step {i}, " for i in range(40))


def test_a_silent_connection_is_kept_open(monkeypatch):
    monkeypatch.setattr(sse, "PING_S", 0.1)
    with served() as (scripted, client), client.stream("POST", "/explain", json=BODY | {"stream": True}) as response:
        names = (name for name, _ in read(response.iter_lines()))
        begun = (name for name in names if name != "ping")
        assert [next(begun), next(begun)] == ["started", "delta"]
        assert [next(names), next(names)] == ["ping", "ping"]
        scripted.gate.set()
        assert [name for name in names if name != "ping"][-2:] == ["finished", "done"]


def test_what_fails_later_is_the_last_event_with_the_request_s_id(caplog):
    def script(_sample):
        raise KeyError("secret")

    with served(script=script) as (_, client):
        headers = {"x-request-id": "step-3"}
        response = client.post("/explain", json=BODY | {"stream": True}, headers=headers)
    assert response.status_code == 200
    [(_, _started), (name, failed)] = read(response.text.splitlines())
    assert name == "failed"
    problem = failed["problem"]
    assert (problem["type"], problem["status"], problem["request_id"]) == ("internal_error", 500, "step-3")
    assert "secret" not in response.text


def test_a_stream_is_one_request_in_logs_and_metrics(caplog):
    caplog.set_level("INFO", logger="rlt.access")
    with served(pace=lambda *_: asyncio.sleep(0.03)) as (_, client):
        stream(client, BODY)
        until(lambda: value(client, 'rlt_http_requests_total{method="POST",route="/explain",status="200"}') == 1)
        seconds = value(client, 'rlt_http_request_duration_seconds_sum{method="POST",route="/explain"}')
    [record] = [record for record in caplog.records if getattr(record, "route", "") == "/explain"]
    assert record.status == 200
    assert record.duration_ms > 60, "to the end of the stream, not to its beginning"
    assert seconds > 0.06


@pytest.mark.parametrize("tokens", [0, 1, 2], ids=["before-the-first-token", "after-it", "in-silence"])
def test_a_client_that_leaves_ends_it_at_any_moment(tokens):
    async def pace(_sample, written):
        await asyncio.sleep(60 if written == tokens else 0)

    with served(pace=pace) as (scripted, client):
        with client.stream("POST", "/explain", json=BODY | {"n": 3, "stream": True}) as response:
            names = (name for name, _ in read(response.iter_lines()))
            for _ in range(1 + tokens):
                next(names)
        until(lambda: not scripted.scene.inside and scripted.scene.admission.inside == 0)
        until(lambda: value(client, "rlt_teacher_streams ") == 0)
        assert scripted.scene.held == []


def test_a_client_that_leaves_before_the_stream_begins():
    with served() as (scripted, client):
        never = asyncio.Event()
        scripted.scene.limits = never.wait
        with pytest.raises(httpx.ReadTimeout):
            client.post("/explain", json=BODY | {"stream": True}, timeout=httpx.Timeout(60, read=0.3))
        until(lambda: value(client, "rlt_teacher_streams ") == 0)
        until(lambda: value(client, 'rlt_http_requests_total{method="POST",route="/explain",status="499"}') == 1)


NARROW = (socket.SO_SNDBUF, 2**14), (socket.SO_RCVBUF, 2**14)
"""Of sockets that are full soon, however slowly it comes."""


def test_a_client_that_does_not_read_gets_few_long_deltas_and_everything_in_the_end(monkeypatch):
    """Far more than the sockets between them hold: 64 samples × 400 tokens would be 25,600 events."""
    text, options = LONG * 4, [(socket.SOL_SOCKET, *option) for option in NARROW]

    def listen_narrowly(*address):
        listener = listen(*address)
        for option in options:
            listener.setsockopt(*option)
        return listener

    monkeypatch.setattr("rlt_service.testing.listen", listen_narrowly)

    async def pace(_sample, _written):
        await asyncio.sleep(0.005)

    given = {"script": lambda _: text + CLOSE, "pace": pace, "max_model_len": 5000, "budget": 2000}
    with (
        served(**given) as (scripted, usual),
        httpx.Client(
            base_url=usual.base_url, timeout=60, transport=httpx.HTTPTransport(socket_options=options)
        ) as client,
        client.stream("POST", "/explain", json=BODY | {"n": 64, "stream": True}) as response,
    ):
        until(lambda: scripted.scene.admission.inside == 64)
        until(lambda: scripted.scene.admission.inside == 0, seconds=60)
        events = list(read(response.iter_lines()))
    deltas = [data for name, data in events if name == "delta"]
    done = events[-1][1]["response"]
    assert sum(delta["tokens"] for delta in deltas) == done["usage"]["completion_tokens"] > 64 * 400
    assert len(deltas) < done["usage"]["completion_tokens"] / 5
    assert {each["text"] for each in done["explanations"]} == {"\n\n" + text}
    first = "".join(delta["text"] for delta in deltas if delta["index"] == 0)
    assert first == "\n\n" + text


def test_a_running_stream_is_finished_after_sigterm():
    scripted = Served(Scene())
    scripted.scene.pace = scripted.hold
    drainable = Drainable(scripted.app(), OpenAIErrors)
    server = DrainingServer(uvicorn.Config(drainable, log_config=None), drainable, grace=20)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60) as client:
            until(lambda: server.started)
            with client.stream("POST", "/explain", json=BODY | {"stream": True}) as response:
                names = (name for name, _ in read(response.iter_lines()))
                assert [next(names) for _ in range(2)] == ["started", "delta"]
                server.handle_exit(signal.SIGTERM, None)
                refused = client.post("/explain", json=BODY)
                assert (refused.status_code, refused.json()["type"]) == (503, "stopping")
                refused = client.get("/v1/models")
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
                scripted.gate.set()
                assert list(names)[-1] == "done"
        thread.join(60)
    assert not thread.is_alive()
