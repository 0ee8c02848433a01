"""Refusals under `/v1/`: OpenAI's shape and statuses, whoever refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from rlt_client.errors import Conflict, Overloaded, Unavailable
from rlt_client.schemas.common import Problem, Scope
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.openai.errors import error_body, sample_refusal
from rlt_teacher_server.openai.reading import NEUTRAL

USER, SOLUTION = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def refused(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert reply.headers["x-request-id"]
    body = reply.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    return body["error"]


WRONG = {"tool_choice": "required", "logit_bias": {"1": 2}, "stop": ["\n"], "modalities": ["audio"], "top_logprobs": 3}


@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize("stream", [False, True])
def test_what_would_change_the_result_is_refused_by_name(chat, name, stream):
    error = refused(chat(stream=stream, **{name: WRONG.get(name, 0.5)}))
    assert (error["param"], error["code"], error["type"]) == (name, "unsupported_parameter", "invalid_request_error")
    assert f"`{name}` would change the result" in error["message"]


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([], "messages", "at least 1 item"),
        ([USER], "messages", "roles are user: `messages` are the question"),
        ([SOLUTION], "messages", "roles are assistant"),
        ([SOLUTION, USER], "messages", "roles are assistant, user"),
        ([USER, SOLUTION, USER], "messages", "roles are user, assistant, user"),
        ([USER, USER, SOLUTION], "messages", "roles are user, user, assistant"),
        ([USER, {"role": "tool", "content": "a"}], "messages", "roles are user, tool"),
        ([{"role": "system", "content": "Be brief."}, USER, SOLUTION], "messages[0]", "belongs to the prompt format"),
        (
            [{"role": "developer", "content": "Be brief."}, USER, SOLUTION],
            "messages[0]",
            "belongs to the prompt format",
        ),
        ([{"role": "user", "content": [{"type": "image_url"}]}, SOLUTION], "messages[0].content[0]", "only text"),
        ([{"role": "user", "content": [{"type": "text"}]}, SOLUTION], "messages[0].content[0]", "only text"),
        ([{"role": "user", "content": " "}, SOLUTION], "messages[0].content", "the question is empty"),
        ([{"role": "user"}, SOLUTION], "messages[0].content", "at least 1 character"),
        ([USER, {"role": "assistant", "content": []}], "messages[1].content", "at least 1 character"),
        ([{"content": "q"}, SOLUTION], "messages[0].role", "Field required"),
        ([{"role": "user", "content": 3}, SOLUTION], "messages[0].content", "valid string"),
        ("q", "messages", "valid list"),
    ],
)
def test_other_conversations_are_refused(chat, messages, param, words):
    error = refused(chat(messages=messages))
    assert error["param"] == param
    assert words in error["message"]


def test_the_solution_is_given_once(chat):
    error = refused(chat(answer="17"))
    assert (error["param"], error["code"]) == ("messages", "unsupported_message")
    assert error["message"].startswith("the solution is given twice")


def test_an_empty_solution_beside_the_messages(chat, conversation):
    assert refused(chat(messages=conversation[:1], answer=" "))["param"] == "answer"
    assert refused(chat(messages=conversation[:1], answer=""))["param"] == "answer"


REFUSED = [
    ({"model": "nobody"}, 404, "model", "model_not_found"),
    ({"model": ""}, 400, "model", "invalid_request"),
    ({"n": 0}, 400, "n", "invalid_request"),
    ({"n": 257}, 400, "n", "invalid_request"),
    ({"seed": -1}, 400, "seed", "invalid_request"),
    ({"temperature": 2.5}, 400, "temperature", "invalid_request"),
    ({"temperature": 0.001}, 400, "temperature", "temperature_too_low"),
    ({"top_p": 0}, 400, "top_p", "invalid_request"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_request"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, 400, "max_tokens", "invalid_request"),
    ({"max_tokens": 5000}, 400, "max_tokens", "context_length_exceeded"),
    ({"max_tokens": None, "max_completion_tokens": 5000}, 400, "max_completion_tokens", "context_length_exceeded"),
    ({"rlt": {"scoer": True}}, 400, "rlt.scoer", "invalid_request"),
    ({"rlt": {"format": "nothing"}}, 404, "rlt.format", "unknown_format"),
    ({"rlt": {"score": True, "spec": "fame"}}, 400, "rlt.spec", "invalid_request"),
]
NOT_STREAMED = [
    ({"rlt": {"keep": "best"}}, 400, None, "invalid_request"),
    ({"rlt": {"incomplete": "retry", "retry_max_tokens": 0}}, 400, "rlt.retry_max_tokens", "invalid_request"),
    ({"rlt": {"incomplete": "retry", "retry_max_tokens": 3}}, 400, None, "invalid_request"),
]


@pytest.mark.parametrize(
    ("stream", "given", "status", "param", "code"),
    [(stream, *case) for case in REFUSED for stream in (False, True)] + [(False, *case) for case in NOT_STREAMED],
)
def test_a_refusal_says_what_and_where(chat, stream, given, status, param, code):
    error = refused(chat(**given, stream=stream), status)
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "extras",
    [
        {"score": True, "keep": "best"},
        {"score": True, "min_reward": 0},
        {"incomplete": "drop"},
        {"incomplete": "retry"},
        {"drop_leaks": True},
    ],
)
def test_what_would_have_to_be_taken_back_is_not_streamed(chat, extras):
    error = refused(chat(stream=True, rlt=extras))
    assert error["param"] == f"rlt.{list(extras)[-1]}"
    assert "cannot be taken back" in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": NaN}', b"\xff"])
def test_what_is_no_request_at_all(teacher, body):
    headers = {"content-type": "application/json"}
    refused(teacher.post("/v1/chat/completions", content=body, headers=headers))


def test_paths_and_methods_that_are_not_served(teacher):
    assert refused(teacher.post("/v1/completions", json={}), 404)["code"] == "not_found"
    assert refused(teacher.get("/v1/chat/completions"), 405)["code"] == "method_not_allowed"
    assert refused(teacher.get("/v1/models/nobody"), 404)["code"] == "model_not_found"


def test_other_paths_keep_their_problems(teacher):
    reply = teacher.post("/explain", json={})
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["type"] == "invalid_request"


# Keys, limits, failures


def line(token: str, scope: Scope) -> str:
    return Key(hash_token(token), "somebody", frozenset({scope})).line()


GOOD, OTHER = create_token(), create_token()


@pytest.fixture(scope="module")
def app(settings) -> FastAPI:
    keys = ";".join([line(GOOD, Scope.explain), line(OTHER, Scope.reward)])
    return build(settings(keys=keys, max_body_bytes=4096))


@pytest.fixture(scope="module")
def guarded(app: FastAPI) -> Iterator[httpx.Client]:
    with running(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.headers["authorization"] = f"Bearer {GOOD}"
        yield client


@pytest.fixture
def body(conversation) -> dict[str, Any]:
    return {"model": "teacher", "messages": conversation, "max_tokens": 27}


PATHS = [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/teacher")]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_a_key_is_needed_and_its_scope(guarded, body, method, path):
    def ask(key: str | None) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {"authorization": ""}
        return guarded.request(method, path, headers=headers, json=body if method == "POST" else None)

    assert ask(GOOD).status_code == 200
    nobody = ask(None)
    assert refused(nobody, 401)["code"] == "invalid_api_key"
    assert nobody.headers["www-authenticate"].startswith("Bearer")
    wrong = refused(ask("sk-wrong"), 401)
    assert (wrong["code"], wrong["type"]) == ("invalid_api_key", "authentication_error")
    outside = refused(ask(OTHER), 403)
    assert (outside["code"], outside["type"]) == ("missing_scope", "permission_error")


def test_a_body_over_the_limit(guarded, body):
    error = refused(guarded.post("/v1/chat/completions", json=body | {"user": "x" * 5000}), 413)
    assert error["code"] == "payload_too_large"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_server_says_when_to_come_back(guarded, app, body, stream):
    admission = app.state.chat._sampler.admission
    with admission.admit(admission.capacity):
        reply = guarded.post("/v1/chat/completions", json=body | {"stream": stream})
    error = refused(reply, 429)
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert int(reply.headers["retry-after"]) >= 1
    assert "x-should-retry" not in reply.headers


@pytest.mark.parametrize(
    ("error", "status", "code", "retried"),
    [
        (RuntimeError("a secret"), 500, "internal_error", False),
        (Conflict("it is in no engine", type="policy_not_loaded"), 409, "policy_not_loaded", False),
        (Unavailable("the engine is down", type="engine_down", retry_after=2.2), 503, "engine_down", True),
        (Overloaded("queues are full"), 429, "rate_limit_exceeded", True),
    ],
)
def test_failures_say_whether_to_ask_again(guarded, app, body, monkeypatch, error, status, code, retried):
    async def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(app.state.explainer, "explain", fail)
    reply = guarded.post("/v1/chat/completions", json=body)
    told = refused(reply, status)
    assert told["code"] == code
    assert told["type"] == (
        "server_error" if status >= 500 else "rate_limit_error" if retried else "invalid_request_error"
    )
    assert "secret" not in reply.text
    assert reply.headers.get("x-should-retry") == (None if retried else "false")
    assert reply.headers.get("retry-after") == ("3" if status == 503 else None)


def test_an_engine_that_is_down(settings, body):
    with running(lambda: build(settings(engine="http://127.0.0.1:9"))) as url:
        reply = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert refused(reply, 503)["type"] == "server_error"
        assert httpx.get(f"{url}/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("type", "status", "param"),
    [
        ("context_overflow", 422, "max_tokens"),
        ("engine_refused", 422, None),
        ("engine_failed", 500, None),
        ("out_of_memory", 500, None),
    ],
)
def test_whose_doing_a_failed_sample_is(type, status, param):
    problem = sample_refusal(Problem(type=type, title="t", detail="why")).problem()
    assert (problem.status, problem.detail, error_body(problem).param) == (status, "why", param)


def test_several_faults_are_told_together(chat):
    error = refused(chat(n=0, top_p=7))
    assert error["param"] == "n"
    assert "n: Input should be greater" in error["message"]
    assert "top_p: Input should be less" in error["message"]
