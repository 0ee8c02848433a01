"""Every route of the three servers × every scope × no key × wrong keys.

The routes are walked, so that a new one is covered by itself: it must want its server's scope, or stand among the
exceptions. Nothing is started: who may not call is told before anything is asked of a model or a database.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from rlt_client.schemas.common import Scope
from rlt_service.auth import PUBLIC_PATHS, is_public
from rlt_service.keys import Key, create_token, hash_token

SCOPES = {"reward": Scope.reward, "teacher": Scope.explain, "jobs": Scope.build}
"""What the key of a user of each server may do."""
ADMINISTRATION = {
    ("reward", "POST", "/models"),
    ("reward", "DELETE", "/models/{role}/{name:path}"),
    ("teacher", "POST", "/policies"),
    ("teacher", "POST", "/policies/rollback"),
    ("teacher", "POST", "/policies/{name:path}/activate"),
    ("teacher", "POST", "/policies/{name:path}/unload"),
    ("teacher", "DELETE", "/policies/{name:path}"),
    ("jobs", "GET", "/health/details"),
}
"""What concerns every user of a server."""
VALUES = {"role": "student", "upload_id": "00000000-0000-4000-8000-000000000000"}
"""Of path parameters; 1 is a number and a name."""
IN_PATH = "{path_key}"
UNKNOWN = create_token()
NO_KEY = ((), ("",), ("Bearer",), ("Bearer ",), (f"Bearer {UNKNOWN}",), (f"Bearer {UNKNOWN[:-1]}",), ("Basic YTpi",))
TOKENS = {scope: create_token() for scope in Scope}
PATH_TOKENS = {scope: create_token() for scope in Scope}


class Route(NamedTuple):
    server: str
    method: str
    path: str

    @property
    def scope(self) -> Scope:
        return Scope.admin if self in ADMINISTRATION else SCOPES[self.server]

    def address(self, token: str = "") -> str:
        def value(found: re.Match[str]) -> str:
            return token if found[0] == IN_PATH else VALUES.get(found[1], "1")

        return re.sub(r"{(\w+)(?::path)?}", value, self.path)


@cache
def app_of(server: str) -> FastAPI:
    lines = [Key(hash_token(token), scope, frozenset({scope})) for scope, token in TOKENS.items()]
    lines += [Key(hash_token(token), scope, frozenset({scope}), in_path=True) for scope, token in PATH_TOKENS.items()]
    keys = ";".join(key.line() for key in lines)
    if server == "reward":
        from rlt_reward_server import app as reward
        from rlt_reward_server.settings import Settings as RewardSettings

        return reward.build(RewardSettings(student="unused", keys=keys))
    if server == "teacher":
        from rlt_teacher_server import app as teacher
        from rlt_teacher_server.settings import Settings as TeacherSettings

        return teacher.build(TeacherSettings(model="unused", keys=keys))
    from rlt_jobs import app as jobs
    from rlt_jobs.settings import Settings as JobsSettings

    return jobs.build(JobsSettings(database_url="postgresql+psycopg://unused@127.0.0.1:9/unused", keys=keys))


def routes() -> Iterator[Route]:
    for server in SCOPES:
        for route in iter_route_contexts(app_of(server).routes):
            if not is_public(route):
                assert route.path is not None
                yield from (Route(server, method, route.path) for method in sorted(route.methods or {"*"}))


def call(route: Route, *headers: str, path_token: str = "") -> tuple[int, str | None]:
    """Status and type of the reply to a request with these `Authorization` headers, and a body that is no JSON."""
    return asyncio.run(_call(route, headers, path_token))


async def _call(route: Route, headers: tuple[str, ...], path_token: str) -> tuple[int, str | None]:
    transport = httpx.ASGITransport(app_of(route.server), raise_app_exceptions=False)  # nothing is started behind it
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        reply = await http.request(
            route.method,
            route.address(path_token),
            content=b"{ not json",
            headers=[("content-type", "application/json"), *(("authorization", value) for value in headers)],
        )
    said = reply.json() if reply.content else {}
    if not isinstance(said, dict):
        return reply.status_code, None
    error = said.get("error")
    return reply.status_code, error["code"] if error else said.get("type")


def allowed(route: Route, scope: Scope) -> bool:
    return scope in (route.scope, Scope.admin)


ALL = list(routes())
WITH_HEADER = [route for route in ALL if IN_PATH not in route.path]
WITH_PATH_KEY = [route for route in ALL if IN_PATH in route.path]


def name(route: Route) -> str:
    return " ".join(route)


def test_the_walk_finds_what_there_is() -> None:
    assert {("reward", "POST", "/reward"), ("teacher", "POST", "/explain"), ("jobs", "POST", "/builds")} <= {*ALL}
    assert {*ALL} >= ADMINISTRATION
    assert len(WITH_PATH_KEY) == 2


@pytest.mark.parametrize("route", WITH_HEADER, ids=name)
def test_without_a_good_key_nothing_is_answered(route: Route) -> None:
    for headers in NO_KEY:
        status, kind = call(route, *headers)
        assert status == 401, headers
        assert route.method == "HEAD" or kind in ("unauthorized", "unknown_key", "invalid_api_key")


@pytest.mark.parametrize("route", WITH_HEADER, ids=name)
def test_each_scope_opens_its_own_routes_and_no_other(route: Route) -> None:
    for scope in Scope:
        status, kind = call(route, f"Bearer {TOKENS[scope]}")
        if allowed(route, scope):
            assert status not in (401, 403), scope
        else:  # and not what is wrong with the body: it is not read
            assert (status, kind) in ((403, "missing_scope"), (403, None)), scope


@pytest.mark.parametrize("route", WITH_HEADER, ids=name)
def test_a_second_header_does_not_open_what_the_first_does_not(route: Route) -> None:
    """A proxy and a server that read different ones of two headers are a way around the proxy."""
    good, unknown = f"Bearer {TOKENS[Scope.admin]}", f"Bearer {UNKNOWN}"
    assert call(route, unknown, good)[0] == 401


@pytest.mark.parametrize("route", WITH_PATH_KEY, ids=name)
def test_keys_in_the_path(route: Route) -> None:
    assert call(route, path_token=UNKNOWN)[0] == 401
    for scope in Scope:
        assert call(route, path_token=TOKENS[scope])[0] == 401, "it is not marked `path`"
        status, _ = call(route, path_token=PATH_TOKENS[scope])
        assert (status not in (401, 403)) if allowed(route, scope) else (status == 403)


@pytest.mark.parametrize("route", ALL, ids=name)
def test_a_path_in_another_spelling_is_no_way_around(route: Route) -> None:
    """Encoded, doubled or with dots: either another path (404, 405), or the same with the same key check."""
    path = route.address(UNKNOWN)
    for spelt in (f"/{path}", f"{path}/", path.replace("/", "/./", 1), f"/livez/..{path}", path.replace("/", "/%2e/")):
        assert call(route._replace(path=spelt))[0] in (401, 404, 405)


@pytest.mark.parametrize("server", SCOPES)
@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
def test_public_paths_are_read_only(server: str, path: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert call(Route(server, method, path))[0] == 405
