"""Traces, in processes of their own: OpenTelemetry has one provider a process, for good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from plugins.traces import Collector, collecting

from rlt_service import telemetry

TOKEN = "rlt_" + "k3y7" * 13

SCRIPT = """
import asyncio, json, logging, sys
import httpx
from fastapi import Request
from rlt_client._http import HTTP
from rlt_client._batching import Batcher
from rlt_client.schemas.common import Reply, Scope
from rlt_service import logs, telemetry
from rlt_service.app import create_app
from rlt_service.auth import requires
from rlt_service.routing import Router
from rlt_service.settings import ServerSettings
from rlt_service.testing import running

logs.configure("info", "json", service="one")
telemetry.start("one", "0.1.0")
log = logging.getLogger("here")

def app(routes):
    async def ready(): return {}
    return create_app(title="one", version="0.1.0", settings=ServerSettings(), routers=[routes], ready=ready)

inner = Router(dependencies=[requires(Scope.reward)])
@inner.post("/inner")
async def inside(request: Request) -> Reply:
    log.info("inside")
    return Reply()

outer = Router(dependencies=[requires(Scope.reward)])
@outer.post("/outer")
async def outside(request: Request) -> Reply:
    return await request.app.state.http.request("POST", "/inner", reply=Reply)

async def main():
    async with HTTP(app_outer.state.url) as http:
        httpx.get(app_outer.state.url + "/readyz")          # of nobody's trace
        with telemetry.span("work", build_id=7, note="Bearer TOKEN"):
            parent = telemetry.traceparent()
            await http.request("POST", "/outer", reply=Reply, headers={"authorization": "Bearer TOKEN"})
        with telemetry.span("later", parent=parent):
            with telemetry.unrecorded():
                await http.request("POST", "/outer", reply=Reply)
        batcher = Batcher(lambda lane, items: shared(http, items), window=0.01, max_items=9, max_cost=9, concurrency=1)
        async def item(name, context):
            with context:
                await batcher.submit("lane", name, name, 1)
        await asyncio.gather(
            item("c", telemetry.unrecorded()), item("a", telemetry.span("a")), item("b", telemetry.span("b"))
        )
        try:
            with telemetry.span("broken", parent=parent):
                raise ValueError("rejected TOKEN")
        except ValueError:
            pass
    print(json.dumps(parent))

async def shared(http, items):
    await http.request("POST", "/inner", reply=Reply)
    return items

app_inner, app_outer = app(inner), app(outer)
with running(app_inner) as url:
    app_outer.state.http = HTTP(url)
    app_outer.include_router(inner)
    with running(app_outer) as url:
        app_outer.state.url = url
        asyncio.run(main())
telemetry.stop()
"""


def run(environment: dict[str, str]) -> tuple[str | None, list[dict[str, Any]], str]:
    """The traceparent of the span `work`, the log lines, and the whole of standard error."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("TOKEN", TOKEN)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [json.loads(line) for line in done.stderr.splitlines()], done.stderr


@pytest.fixture(scope="module")
def traced() -> Any:
    with collecting() as collector:
        parent, lines, _ = run(collector.environment())
        assert parent is not None
        yield collector, parent.split("-")[1], lines


def test_a_call_and_what_it_calls_are_one_trace(traced: tuple[Collector, str, list[dict[str, Any]]]) -> None:
    collector, trace, _ = traced
    spans = {(span.name, span.parent): span for span in collector.of_trace(trace)}
    by_name = {name: span for (name, _), span in spans.items()}
    work, outer, inner = (by_name[name] for name in ("work", "POST /outer", "POST /inner"))
    calls = {span.id: span.parent for span in spans.values() if span.name == "POST"}
    assert (work.parent, calls[outer.parent], calls[inner.parent]) == ("", work.id, outer.id)
    assert work.attributes == {"rlt.build_id": 7, "rlt.note": "Bearer [redacted]"}
    assert {span.service for span in spans.values()} == {"one"}


def test_what_goes_on_later_is_in_the_trace_it_was_begun_in(
    traced: tuple[Collector, str, list[dict[str, Any]]],
) -> None:
    collector, trace, _ = traced
    names = [span.name for span in collector.of_trace(trace)]
    assert names.count("later") == 1
    assert names.count("POST /outer") == 1  # the second was asked for `unrecorded`, over there too


def test_a_shared_request_stands_in_one_trace_and_the_others_link_to_it(
    traced: tuple[Collector, str, list[dict[str, Any]]],
) -> None:
    collector, _, _ = traced
    first, second = (next(span for span in collector.spans if span.name == name) for name in "ab")
    assert [span.name for span in collector.of_trace(first.trace)].count("POST /inner") == 1
    assert first.links == ()
    assert second.links == (first.trace,)
    assert {span.name for span in collector.of_trace(second.trace)} == {"b"}


def test_no_secret_and_no_health_check_leaves_the_process(
    traced: tuple[Collector, str, list[dict[str, Any]]],
) -> None:
    collector, _, _ = traced
    assert any("rejected [redacted]" in span.text for span in collector.spans)
    assert not any("k3y7" in span.text or "readyz" in span.text for span in collector.spans)


def test_log_lines_name_their_trace(traced: tuple[Collector, str, list[dict[str, Any]]]) -> None:
    collector, trace, lines = traced
    inside = [line for line in lines if line["event"] == "inside" and line["trace_id"] == trace]
    assert {line["span_id"] for line in inside} >= {
        span.id for span in collector.of_trace(trace) if span.name == "POST /inner"
    }
    assert len(inside) == 2  # what is not recorded has the trace's id all the same


def test_nothing_is_recorded_unless_it_is_asked_for() -> None:
    with collecting() as collector:
        parent, lines, _ = run(collector.environment() | {"OTEL_SDK_DISABLED": "true"})
        assert (parent, collector.spans) == (None, [])
        assert not any("trace_id" in line for line in lines)


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_what_asks_for_traces(
    variables: dict[str, str], asked: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(telemetry, "_installed", lambda _module: False)
    with caplog.at_level("WARNING", logger="rlt_service.telemetry"):
        telemetry.start("one")
    assert ("install `rlt-service[otel]`" in caplog.text) == asked
    assert telemetry.traceparent() is None


def test_the_sampler_is_the_usual_variables() -> None:
    with collecting() as collector:
        parent, _, _ = run(collector.environment() | {"OTEL_TRACES_SAMPLER": "always_off"})
        assert parent is not None
        assert int(parent[-2:], 16) & 1 == 0  # W3C's flag `sampled`
        assert collector.spans == []


def test_a_setting_that_cannot_be_read_is_told_and_stops_nobody() -> None:
    script = "from rlt_service import logs, telemetry; logs.configure(); telemetry.start('one'); print('goes on')"
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_MAX_QUEUE_SIZE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "goes on\n", done.stderr
    assert "nothing is traced" in done.stderr
