"""What the server does not take: wrong requests, wrong callers, too much at once."""

from __future__ import annotations

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from rlt_client.schemas.common import Scope
from rlt_service.auth import PUBLIC_PATHS
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.testing import running
from rlt_teacher_server.app import build

FIELDS = [
    ({"question": None}, "/question"),
    ({"question": ""}, "/question"),
    ({"answer": ""}, "/answer"),
    ({"answer": 17}, "/answer"),
    ({"question": ["Q"]}, "/question"),
    ({"n": 0}, "/n"),
    ({"n": 257}, "/n"),
    ({"n": "many"}, "/n"),
    ({"max_tokens": 0}, "/max_tokens"),
    ({"temperature": -0.1}, "/temperature"),
    ({"temperature": 2.1}, "/temperature"),
    ({"top_p": 0}, "/top_p"),
    ({"top_p": 1.1}, "/top_p"),
    ({"top_k": -2}, "/top_k"),
    ({"seed": -1}, "/seed"),
    ({"seed": 2**63}, "/seed"),
    ({"seed": 1.5}, "/seed"),
    ({"colour": "blue"}, "/colour"),
    ({"spec": "nicest"}, "/spec"),
]


@pytest.mark.parametrize(("wrong", "pointer"), FIELDS)
def test_wrong_fields(teacher, problem, wrong, pointer):
    response = teacher.post("/explain", json=problem | wrong)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert any(error["pointer"].startswith(pointer) for error in response.json()["errors"])


@pytest.mark.parametrize("missing", ["question", "answer"])
def test_missing_fields(teacher, problem, missing):
    response = teacher.post("/explain", json={name: text for name, text in problem.items() if name != missing})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == f"/{missing}"


REFUSALS = [
    ({"question": "  \n"}, 422, "empty_question"),
    ({"answer": "\t "}, 422, "empty_answer"),
    ({"format": "nope"}, 404, "unknown_format"),
    ({"format": "stratos"}, 422, "format_unavailable"),
    ({"policy": "nope"}, 404, "policy_not_found"),
    ({"temperature": 0.001}, 422, "temperature_too_low"),
    ({"question": "What is 36 plus 5?"}, 422, "untokenizable"),
]


@pytest.mark.parametrize(("wrong", "status", "type"), REFUSALS)
def test_refusals(teacher, problem, wrong, status, type):
    response = teacher.post("/explain", json=problem | wrong)
    assert (response.status_code, response.json()["type"]) == (status, type)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"items": [], "max_tokens": 1}, "/items"),
        ({"items": [{"prompt_token_ids": []}], "max_tokens": 1}, "/items/0/prompt_token_ids"),
        ({"items": [{"prompt_token_ids": ["Q"]}], "max_tokens": 1}, "/items/0/prompt_token_ids/0"),
        ({"items": [{"prompt_token_ids": [1]}]}, "/max_tokens"),
        ({"items": [{"prompt_token_ids": [1], "n": 2}], "max_tokens": 1}, "/items/0/n"),
    ],
)
def test_wrong_items(teacher, body, pointer):
    response = teacher.post("/generate", json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer


def test_generate_knows_its_policy(teacher):
    item = {"prompt_token_ids": [1]}
    response = teacher.post("/generate", json={"items": [item], "max_tokens": 1, "policy": "nope"})
    assert (response.status_code, response.json()["type"]) == (404, "policy_not_found")


def test_too_many_items(teacher):
    items = [{"prompt_token_ids": [1]}] * 4097
    response = teacher.post("/generate", json={"items": items, "max_tokens": 1})
    assert (response.status_code, response.json()["type"]) == (413, "too_many_items")


def test_not_json(teacher):
    response = teacher.post("/explain", content=b"{", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["type"]) == (400, "malformed_json")


def test_numbers_must_be_finite(teacher):
    body = b'{"question": "Q 1", "answer": "1", "temperature": NaN}'
    response = teacher.post("/explain", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["type"]) == (422, "not_finite")


def test_a_body_over_the_limit(settings, problem):
    with running(lambda: build(settings(max_body_bytes=1000))) as url:
        response = httpx.post(f"{url}/explain", json=problem | {"question": "Q " * 1000})
    assert response.status_code == 413


# Who may call


@pytest.fixture(scope="module")
def tokens():
    return {scope: create_token() for scope in Scope}


@pytest.fixture(scope="module")
def locked(settings, tokens):
    keys = ";".join(Key(hash_token(token), scope, frozenset({scope})).line() for scope, token in tokens.items())
    with running(lambda: build(settings(keys=keys))) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_no_key(locked, problem):
    response = locked.post("/explain", json=problem)
    assert (response.status_code, response.json()["type"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("scope", "status"), [(Scope.explain, 200), (Scope.admin, 200), (Scope.reward, 403), (Scope.build, 403)]
)
@pytest.mark.parametrize("path", ["/explain", "/generate"])
def test_scopes(locked, tokens, problem, scope, status, path):
    item = {"items": [{"prompt_token_ids": [1]}], "max_tokens": 1}
    body = problem | {"max_tokens": 2} if path == "/explain" else item
    response = locked.post(path, json=body, headers={"authorization": f"Bearer {tokens[scope]}"})
    assert response.status_code == status


def test_every_route_but_the_public_ones_wants_a_key(settings, locked):
    routes = [route for route in iter_route_contexts(build(settings()).routes) if route.path not in PUBLIC_PATHS]
    assert {route.path for route in routes} >= {"/explain", "/explain/batch", "/generate"}
    for route in routes:
        for method in route.methods or ():
            assert locked.request(method, str(route.path)).status_code == 401


def test_health_wants_no_key(locked):
    assert [locked.get(path).status_code for path in ("/livez", "/readyz", "/metrics", "/version")] == [200] * 4
