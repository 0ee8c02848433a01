"""How much a key may ask for."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from fastapi import Request

from rlt_client._http import HTTP
from rlt_client.errors import Overloaded
from rlt_client.schemas.common import Problem, Reply, Scope
from rlt_service.app import create_app
from rlt_service.auth import requires
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.rates import spend
from rlt_service.routing import Router
from rlt_service.settings import ServerSettings
from rlt_service.testing import running

TOKENS = {name: create_token() for name in ("few", "many", "items", "quick")}
KEYS = (
    Key(hash_token(TOKENS["few"]), "ann", frozenset({Scope.reward}), rate="2/hour"),
    Key(hash_token(TOKENS["many"]), "ann", frozenset({Scope.reward})),
    Key(hash_token(TOKENS["items"]), "bob", frozenset({Scope.reward}), items="10/hour"),
    Key(hash_token(TOKENS["quick"]), "bob", frozenset({Scope.reward}), rate="2/second"),
)


def make_app(**settings: Any) -> Any:
    router = Router()

    @router.get("/thing", dependencies=[requires(Scope.reward)])
    async def thing() -> dict[str, str]:
        return {}

    @router.post("/items", dependencies=[requires(Scope.reward)])
    async def items(request: Request, body: list[int]) -> dict[str, int]:
        spend(request, len(body))
        return {"items": len(body)}

    async def ready() -> dict[str, Any]:
        return {}

    fields = {"keys": ";".join(key.line() for key in KEYS), **settings}
    return create_app(title="x", version="1", settings=ServerSettings(**fields), routers=[router], ready=ready)


def client(app: Any, token: str | None = None) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {TOKENS[token]}"} if token else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)


def refused(reply: httpx.Response) -> int:
    """The seconds to wait."""
    problem = Problem.model_validate_json(reply.content)
    assert (reply.status_code, problem.type) == (429, "rate_limited"), reply.text
    return int(reply.headers["retry-after"])


async def test_requests_of_one_key_are_limited_and_those_of_others_are_not() -> None:
    app = make_app()
    async with client(app, "few") as few, client(app, "many") as many:
        assert [(await few.get("/thing")).status_code for _ in range(2)] == [200, 200]
        reply = await few.get("/thing")
        assert 1000 < refused(reply) <= 3600
        assert "2 requests in 3600 seconds" in reply.json()["detail"]
        assert [(await many.get("/thing")).status_code for _ in range(5)] == [200] * 5
        for path in ("/livez", "/readyz", "/metrics", "/version", "/openapi.json"):
            assert (await few.get(path)).status_code == 200
        assert 'rlt_rate_limited_total{limit="requests"} 1.0' in (await few.get("/metrics")).text


async def test_the_body_of_a_request_too_many_is_not_read() -> None:
    async with client(make_app(), "few") as http:
        for _ in range(2):
            await http.get("/thing")
        refused(await http.post("/items", content=b"{ not json", headers={"content-type": "application/json"}))


async def test_what_is_in_requests_is_counted() -> None:
    async with client(make_app(), "items") as http:
        assert (await http.post("/items", json=[0] * 4)).status_code == 200
        assert (await http.post("/items", json=[0] * 4)).status_code == 200
        wait = refused(await http.post("/items", json=[0] * 4))
        assert wait == pytest.approx(2 / 10 * 3600, abs=5)  # two of the ten have to leave the window
        assert (await http.post("/items", json=[0] * 2)).status_code == 200  # what is refused costs nothing
        assert (await http.get("/thing")).status_code == 200


async def test_a_request_larger_than_the_limit_takes_all_of_it() -> None:
    async with client(make_app(), "items") as http:
        assert (await http.post("/items", json=[0] * 1000)).status_code == 200
        refused(await http.post("/items", json=[0]))


async def test_limits_of_the_settings_hold_for_keys_that_say_nothing() -> None:
    app = make_app(rate_limit="3/hour", item_limit="5/hour")
    async with client(app, "many") as many, client(app, "few") as few, client(app, "items") as items:
        assert [(await many.get("/thing")).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert [(await few.get("/thing")).status_code for _ in range(3)] == [200, 200, 429]
        assert (await items.post("/items", json=[0] * 9)).status_code == 200


async def test_callers_without_a_key_share_one_count() -> None:
    app = make_app(keys="", rate_limit="2/hour")
    async with client(app) as one, client(app) as other:
        assert [(await http.get("/thing")).status_code for http in (one, other)] == [200, 200]
        refused(await one.get("/thing"))


@pytest.mark.parametrize("limit", ["0/minute", "10", "10/week", "-1/minute", "1/minute; 2/hour"])
def test_a_limit_that_is_none_is_refused_at_the_start(limit: str) -> None:
    with pytest.raises(ValueError, match="rate_limit"):
        ServerSettings(rate_limit=limit)


async def test_the_client_waits_and_is_served() -> None:
    """End to end: the server says how long, the client waits so long."""
    with running(make_app) as url:
        began = time.monotonic()
        async with HTTP(url, key=TOKENS["quick"], deadline=30) as http:
            for _ in range(4):
                await http.request("GET", "/thing", reply=Reply)
            assert time.monotonic() - began >= 1
            asked = (http.request("GET", "/thing", reply=Reply, retry=False) for _ in range(30))
            refusals = [error for error in await asyncio.gather(*asked, return_exceptions=True) if error]
    told = {(error.type, error.retry_after) for error in refusals if isinstance(error, Overloaded)}
    assert told == {("rate_limited", 1)}
