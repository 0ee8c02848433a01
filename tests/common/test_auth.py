"""Keys, scopes, and the rule that no route is open by accident."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from rlt_client.schemas.common import Problem, Scope
from rlt_service.app import UndeclaredRoute
from rlt_service.auth import requires, undeclared_routes
from rlt_service.keys import ChainedKeys, Key, StaticKeys, create_token, hash_token
from rlt_service.routing import Router

JSON = {"content-type": "application/json"}


def refused(reply: httpx.Response, status: int, kind: str) -> Problem:
    found = Problem.model_validate_json(reply.content)
    assert (reply.status_code, found.type) == (status, kind)
    return found


def asgi(app: FastAPI, base_url: str = "http://test", client: str = "127.0.0.1") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(client, 1)), base_url=base_url)


def test_no_key(url: str) -> None:
    reply = httpx.post(f"{url}/echo", json={"items": []})
    refused(reply, 401, "unauthorized")
    assert reply.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("value", ["Bearer nope", "Bearer", "Basic YTpi", "", "Bearer rlt_" + "a" * 52])
def test_wrong_key(url: str, value: str) -> None:
    reply = httpx.post(f"{url}/echo", json={"items": []}, headers={"authorization": value})
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")


def test_the_key_is_checked_before_the_body_is_read(url: str) -> None:
    reply = httpx.post(f"{url}/echo", content=b"{ not json", headers=JSON)
    refused(reply, 401, "unauthorized")


def test_missing_scope_is_named(http: httpx.Client) -> None:
    assert "`admin`" in str(refused(http.get("/things/a"), 403, "missing_scope").detail)


def test_admin_implies_all(url: str, tokens: dict[str, str]) -> None:
    headers = {"authorization": f"bearer {tokens['admin']}"}
    assert httpx.get(f"{url}/things/a", headers=headers).json() == "a"
    assert httpx.post(f"{url}/echo", json={"items": []}, headers=headers).json()["owner"] == "root"


def test_the_owner_comes_from_the_key(http: httpx.Client, tokens: dict[str, str]) -> None:
    reply = http.post("/echo", json={"items": []}).json()
    assert reply["owner"] == "alice"
    assert reply["key_id"] == hash_token(tokens["reward"])[:12]


def test_only_marked_keys_may_stand_in_the_path(url: str, tokens: dict[str, str]) -> None:
    assert httpx.post(f"{url}/k/{tokens['path']}/echo", json={"a": 1}).json() == {"a": 1}
    refused(httpx.post(f"{url}/k/{tokens['reward']}/echo", json={}), 401, "unknown_key")
    refused(httpx.post(f"{url}/k/nope/echo", json={}), 401, "unknown_key")


def test_a_marked_key_works_as_a_header_too(url: str, tokens: dict[str, str]) -> None:
    reply = httpx.post(f"{url}/echo", json={"items": []}, headers={"authorization": f"Bearer {tokens['path']}"})
    assert reply.json()["owner"] == "trainer"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/version", "/openapi.json"])
def test_public_paths_need_no_key(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 200


async def test_without_keys_everything_is_local(build: Any) -> None:
    async with asgi(build(settings={"keys": ""})) as http:
        reply = await http.post("/echo", json={"items": []})
        assert reply.json() == {"owner": "local", "key_id": None, "items": 0, "limit": 10}
        assert (await http.get("/things/a")).status_code == 200
        unasked = await http.get("/things/a", headers={"authorization": "Bearer anything"})
        assert unasked.status_code == 200  # without keys no key can be wrong


@pytest.mark.parametrize("host", ["http://10.1.2.3", "http://192.168.0.7:8002", "http://rebound.example.org"])
async def test_without_keys_others_are_refused_however_the_app_is_run(build: Any, host: str) -> None:
    """An address of the network, or a web page that points its own name at 127.0.0.1."""
    async with asgi(build(settings={"keys": ""}), host) as http:
        refused(await http.post("/echo", json={"items": []}), 403, "local_only")


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP"])
async def test_without_keys_a_proxy_on_this_machine_opens_nothing(build: Any, header: str) -> None:
    """nginx passes requests on with `Host: 127.0.0.1:8002`, wherever they come from."""
    async with asgi(build(settings={"keys": ""}), "http://127.0.0.1:8002") as http:
        refused(await http.post("/echo", json={"items": []}, headers={header: "for=203.0.113.9"}), 403, "local_only")


@pytest.mark.parametrize(
    "host", ["http://localhost:8002", "http://127.0.0.1", "http://[::1]:8002", "http://rlt.localhost"]
)
async def test_without_keys_this_machine_is_served(build: Any, host: str) -> None:
    async with asgi(build(settings={"keys": ""}), host) as http:
        assert (await http.post("/echo", json={"items": []})).status_code == 200


async def test_anonymous_on_purpose(build: Any, tokens: dict[str, str]) -> None:
    async with asgi(build(settings={"allow_anonymous": True}), "http://10.1.2.3") as http:
        assert (await http.post("/echo", json={"items": []})).json()["owner"] == "local"
        known = await http.post("/echo", json={"items": []}, headers={"authorization": f"Bearer {tokens['reward']}"})
        assert known.json()["owner"] == "alice"
        wrong = await http.post("/echo", json={"items": []}, headers={"authorization": "Bearer wrong"})
        refused(wrong, 401, "unknown_key")


async def test_a_key_store_is_asked_in_turn_and_demands_keys(build: Any) -> None:
    first, second = create_token(), create_token()
    stores = [
        StaticKeys([Key(hash_token(token), owner, frozenset({Scope.reward}))])
        for token, owner in ((first, "ann"), (second, "bob"))
    ]
    async with asgi(build(settings={"keys": ""}, keystore=ChainedKeys(stores))) as http:
        refused(await http.post("/echo", json={"items": []}), 401, "unauthorized")
        for token, owner in ((first, "ann"), (second, "bob")):
            reply = await http.post("/echo", json={"items": []}, headers={"authorization": f"Bearer {token}"})
            assert reply.json()["owner"] == owner


def router_with(path: str, *, method: str = "GET", router: APIRouter | None = None, **options: Any) -> APIRouter:
    router = router or Router()

    @router.api_route(path, methods=[method], **options)
    async def handler() -> None: ...

    return router


def test_an_app_with_an_undeclared_route_is_not_made(build: Any) -> None:
    with pytest.raises(UndeclaredRoute, match="GET /open"):
        build(routers=[router_with("/open")])


def test_a_public_path_is_no_place_to_hide(build: Any) -> None:
    with pytest.raises(UndeclaredRoute, match="POST /version"):
        build(routers=[router_with("/version", method="POST")])


def test_a_route_that_reads_before_it_checks_is_refused(build: Any) -> None:
    plain = router_with("/plain", router=APIRouter(), dependencies=[requires(Scope.reward)])
    with pytest.raises(UndeclaredRoute, match=r"Router`: /plain"):
        build(routers=[plain])


def test_a_mounted_app_or_websocket_is_refused(build: Any) -> None:
    router = Router(dependencies=[requires(Scope.reward)])

    @router.websocket("/ws")
    async def ws() -> None: ...

    with pytest.raises(UndeclaredRoute, match="/ws"):
        build(routers=[router])
    app = build()
    app.mount("/files", FastAPI())
    assert undeclared_routes(app) == ["* /files"]


def test_scopes_count_where_they_are_declared(build: Any) -> None:
    """On the router, on a router inside it, or on the route."""
    outer = Router(prefix="/outer", dependencies=[requires(Scope.build)])
    outer.include_router(router_with("/inner"))
    app = build(routers=[outer, router_with("/own", dependencies=[requires(Scope.admin)])])
    assert undeclared_routes(app) == []
    app.include_router(router_with("/later"))
    assert undeclared_routes(app) == ["GET /later"]
