"""Health, readiness, metrics, version, and the OpenAPI document."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from rlt_service import health, telemetry
from rlt_service.health import Check
from rlt_service.metrics import Metrics


def asgi(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_version(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"name": "rlt-echo", "version": "1.2.3", "python": platform.python_version()}


def test_ready(http: httpx.Client) -> None:
    assert http.get("/readyz").json() == {"status": "ready", "checks": {"model": {"ok": True, "detail": None}}}


async def test_not_ready_names_what_is_missing(build: Any) -> None:
    async def ready() -> Mapping[str, Check]:
        return {"model": Check(ok=False, detail="loading"), "database": Check(ok=True), "queue": Check(ok=False)}

    async with asgi(build(ready=ready)) as http:
        assert (await http.get("/livez")).json() == {"status": "live"}
        reply = await http.get("/readyz")
    assert reply.status_code == 503
    assert reply.headers["content-type"] == "application/problem+json"
    assert int(reply.headers["retry-after"]) >= 1
    body = reply.json()
    assert (body["type"], body["detail"]) == ("not_ready", "waiting for model (loading), queue")
    assert body["checks"]["database"] == {"ok": True}


async def test_a_check_that_raises_is_a_check_that_fails(build: Any) -> None:
    async def ready() -> Mapping[str, Check]:
        raise ConnectionError("password=hunter2")

    async with asgi(build(ready=ready)) as http:
        reply = await http.get("/readyz")
    assert reply.status_code == 503
    assert reply.json()["detail"] == "waiting for ready (ConnectionError)"
    assert "hunter2" not in reply.text


async def test_a_check_that_hangs_is_a_check_that_fails(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ready() -> Mapping[str, Check]:
        await asyncio.Event().wait()
        return {}

    monkeypatch.setattr(health, "_READY_TIMEOUT_S", 0.05)
    async with asgi(build(ready=ready)) as http:
        assert (await http.get("/readyz")).json()["detail"] == "waiting for ready (no answer within 0.05 s)"


async def test_http_metrics_by_route_template(build: Any, tokens: dict[str, str]) -> None:
    metrics = Metrics()
    metrics.counter("scores", "scores by outcome", ["status"]).labels("scored").inc(3)
    async with asgi(build(metrics=metrics)) as http:
        await http.post(f"/k/{tokens['path']}/echo", json={})
        await http.get("/things/a")
        await http.get("/nowhere/1")
        await http.get("/nowhere/2")
        await http.request("BREW", "/echo")
        await http.get("/livez")
        reply = await http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    assert samples(reply.text, "rlt_http_requests_total") == {
        ("POST", "/k/{path_key}/echo", "200"): 1,
        ("GET", "/things/{name}", "401"): 1,
        ("GET", "none", "404"): 2,
        ("other", "/echo", "405"): 1,
    }
    assert samples(reply.text, "rlt_http_request_duration_seconds_count")[("GET", "none")] == 2
    assert samples(reply.text, "rlt_scores_total") == {("scored",): 3}
    assert samples(reply.text, "process_resident_memory_bytes")[()] > 0
    assert tokens["path"] not in reply.text


async def test_crashes_count_as_500(build: Any, tokens: dict[str, str]) -> None:
    async with asgi(build()) as http:
        await http.get("/boom", headers={"authorization": f"Bearer {tokens['reward']}"})
        text = (await http.get("/metrics")).text
    assert samples(text, "rlt_http_requests_total") == {("GET", "/boom", "500"): 1}


async def test_two_apps_have_two_registries(build: Any) -> None:
    first, second = build(), build()
    async with asgi(first) as http:
        await http.get("/nowhere")
    async with asgi(second) as http:
        assert samples((await http.get("/metrics")).text, "rlt_http_requests_total") == {}


def test_openapi_knows_problems_and_keys(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    operation = document["paths"]["/echo"]["post"]
    assert operation["security"] == [{"HTTPBearer": ["reward"]}]
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    reference = operation["responses"]["4XX"]["content"]["application/problem+json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/Problem"
    schemas = document["components"]["schemas"]
    assert {"pointer", "detail"} <= set(schemas["FieldError"]["properties"])
    assert "HTTPValidationError" not in schemas
    assert "security" not in document["paths"]["/livez"]["get"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_that_loads_scripts_from_elsewhere(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 404


def test_spans_leave_out_paths_with_keys() -> None:
    exclude = telemetry.config()["exclude"]
    assert exclude is not None
    assert exclude({"path": "/compat/openrlhf/k/rlt_x/get_reward"})
    assert exclude({"path": "/readyz"})
    assert not exclude({"path": "/reward"})
