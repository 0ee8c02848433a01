"""Every error is an RFC 9457 problem, over real HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from rlt_client.errors import APIError, InvalidRequest, Overloaded, PayloadTooLarge, error_from_problem
from rlt_client.schemas.common import Problem

JSON = {"content-type": "application/json"}


def problem(reply: httpx.Response, status: int, kind: str) -> Problem:
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(reply.content)
    assert (found.type, found.status) == (kind, status)
    assert found.request_id == reply.headers["x-request-id"]
    return found


def pointers(found: Problem) -> list[str]:
    return [error.pointer for error in found.errors or []]


def test_unknown_path(http: httpx.Client) -> None:
    assert problem(http.get("/nowhere"), 404, "not_found").detail == "there is no such path"


def test_wrong_method_keeps_the_allow_header(http: httpx.Client) -> None:
    reply = http.get("/echo")
    problem(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"


def test_trailing_slash_is_not_an_error(http: httpx.Client) -> None:
    reply = http.post("/echo/", json={"items": []}, follow_redirects=False)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ["/items"]),
        ({"items": [{"text": "a", "extra": 1}]}, ["/items/0/extra"]),
        ({"items": [{"text": "a"}, {"text": 3}]}, ["/items/1/text"]),
        ({"items": [{"text": ""}]}, ["/items/0/text"]),
        ({"items": [{"text": "a", "values": [1, "x"]}]}, ["/items/0/values/1"]),
        ({"items": "no"}, ["/items"]),
        ({"items": [], "a/b~c": 1}, ["/a~1b~0c"]),
        ([], [""]),
    ],
)
def test_pointers_into_the_body(http: httpx.Client, body: Any, expected: list[str]) -> None:
    assert pointers(problem(http.post("/echo", json=body), 422, "invalid_request")) == expected


def test_pointers_name_nothing_that_is_not_in_the_document(http: httpx.Client) -> None:
    """pydantic's places name the branches of a union too: `spec/str`, `spec/Spec/lambda`."""
    body = {"items": [], "spec": {"preset": "rlt", "lambda": -1}}
    assert set(pointers(problem(http.post("/echo", json=body), 422, "invalid_request"))) == {"/spec", "/spec/lambda"}
    body = {"items": [], "spec": {"lambda": 1}}
    assert "/spec/preset" in pointers(problem(http.post("/echo", json=body), 422, "invalid_request"))


def test_query_parameters_have_pointers_of_their_own(http: httpx.Client) -> None:
    found = problem(http.post("/echo?limit=many", json={"items": []}), 422, "invalid_request")
    assert pointers(found) == ["/query/limit"]


def test_a_thousand_mistakes_make_a_short_reply(http: httpx.Client) -> None:
    found = problem(http.post("/large", json=[1]), 422, "invalid_request")
    assert pointers(found) == [""]
    body = {"items": [{"t": 1}] * 300}
    assert len(pointers(problem(http.post("/echo", json=body), 422, "invalid_request"))) == 50


def test_mistakes_do_not_repeat_the_input(http: httpx.Client) -> None:
    reply = http.post("/echo", json={"items": [{"text": {"deep": "a private text"}}]})
    assert reply.status_code == 422
    assert "private" not in reply.text


@pytest.mark.parametrize(
    "body", [b'{"items": [', b'{"items": [],}', b"", b"\xff\xfe", b'{"items": []} x', b"[" * 3_000]
)
def test_malformed_json(http: httpx.Client, body: bytes) -> None:
    reply = http.post("/echo", content=body, headers=JSON)
    if body:
        problem(reply, 400, "malformed_json")
    else:
        assert pointers(problem(reply, 422, "invalid_request")) == [""]


def test_a_lone_surrogate_is_not_text(http: httpx.Client) -> None:
    problem(http.post("/echo", content=b'{"items":[{"text":"\\ud800"}]}', headers=JSON), 400, "malformed_json")


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
def test_a_body_that_is_not_called_json(http: httpx.Client, headers: dict[str, str]) -> None:
    problem(http.post("/echo", content=b'{"items": []}', headers=headers), 422, "not_json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e+4000", "1" + "0" * 400 + ".0"])
def test_numbers_that_are_not_finite(http: httpx.Client, number: str) -> None:
    """In typed fields and in free ones: what is stored as jsonb must be JSON."""
    body = '{"items":[{"text":"a","values":[1,N],"meta":{"a/b":[{"x":N}]}}]}'.replace("N", number)
    found = problem(http.post("/echo", content=body, headers=JSON), 422, "not_finite")
    assert pointers(found) == ["/items/0/values/1", "/items/0/meta/a~1b/0/x"]


def test_text_that_speaks_of_nan_is_text(http: httpx.Client) -> None:
    body = {"items": [{"text": "NaN and Infinity and 1e999 and -NaN", "meta": {"NaN": 1}}]}
    assert http.post("/echo", json=body).status_code == 200


def test_a_lenient_route_takes_nan(http: httpx.Client) -> None:
    reply = http.post("/lenient", content=b'{"x": NaN, "y": -Infinity}', headers=JSON)
    assert reply.json() == "{'x': nan, 'y': -inf}"


def test_retry_after_is_whole_seconds(http: httpx.Client) -> None:
    reply = http.get("/busy")
    problem(reply, 429, "overloaded")
    assert reply.headers["retry-after"] == "2"


def test_unexpected_errors_say_nothing(http: httpx.Client, tokens: dict[str, str]) -> None:
    reply = http.get("/boom")
    found = problem(reply, 500, "internal_error")
    assert found.detail is None
    assert "db.internal" not in reply.text
    assert tokens["reward"] not in reply.text


def test_a_reply_that_breaks_its_own_schema_is_our_error(http: httpx.Client) -> None:
    problem(http.get("/lies"), 500, "internal_error")


def test_a_reply_that_breaks_off_is_not_a_whole_reply(http: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        http.get("/breaks")


@pytest.mark.parametrize(
    ("reply_of", "cls"),
    [
        (lambda http: http.get("/busy"), Overloaded),
        (lambda http: http.post("/echo", json={}), InvalidRequest),
        (lambda http: http.post("/echo", content=b"x" * 5000, headers=JSON), PayloadTooLarge),
    ],
)
def test_the_client_makes_the_same_error_of_it(http: httpx.Client, reply_of: Any, cls: type[APIError]) -> None:
    reply = reply_of(http)
    error = error_from_problem(Problem.model_validate_json(reply.content))
    assert type(error) is cls
    assert json.loads(reply.content)["type"] == error.type
