"""The body limit: by its declared length and by what really comes, and routes with a limit of their own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from rlt_client.schemas.common import Problem

LIMIT = 4096
JSON = {"content-type": "application/json"}


def over_limit(reply: httpx.Response, limit: int = LIMIT) -> None:
    assert reply.status_code == 413
    assert reply.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(reply.content)
    assert found.type == "payload_too_large"
    assert found.detail == f"the body is over the limit of {limit} bytes"
    assert found.request_id == reply.headers["x-request-id"]


def json_of(size: int) -> bytes:
    return b'{"a":"' + b"x" * (size - 8) + b'"}'


def chunks(size: int) -> Iterator[bytes]:
    """Sent without Content-Length."""
    body = json_of(size)
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


def test_declared_length(http: httpx.Client) -> None:
    over_limit(http.post("/echo", content=json_of(LIMIT + 1), headers=JSON))
    assert http.post("/echo", content=json_of(LIMIT), headers=JSON).status_code == 422  # read, and found wrong


def test_streamed_without_a_length(http: httpx.Client) -> None:
    over_limit(http.post("/echo", content=chunks(LIMIT + 1), headers=JSON))
    assert http.post("/echo", content=chunks(LIMIT), headers=JSON).status_code == 422


def test_a_body_far_over_the_limit_still_gets_the_reply(http: httpx.Client) -> None:
    """The server must not reset the connection while the caller still sends."""
    over_limit(http.post("/echo", content=json_of(20 * 2**20), headers=JSON))


def test_the_refusal_comes_before_the_body(url: str, tokens: dict[str, str]) -> None:
    address = urlsplit(url)
    head = f"POST /echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tokens['reward']}\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(f"{head}content-type: application/json\r\ncontent-length: 99999999\r\n\r\n{{".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_route_may_take_more(http: httpx.Client) -> None:
    assert http.post("/large", content=json_of(10 * LIMIT), headers=JSON).json() == {"members": 1}
    assert http.post("/large", content=chunks(10 * LIMIT), headers=JSON).json() == {"members": 1}
    over_limit(http.post("/large", content=json_of(100 * LIMIT + 1), headers=JSON), 100 * LIMIT)


def test_uploads_stream_any_size(http: httpx.Client) -> None:
    assert http.post("/uploads", content=iter([b"x" * 2**20] * 8)).json() == {"bytes": 8 * 2**20}


def test_the_connection_lives_on_after_a_refusal(http: httpx.Client) -> None:
    over_limit(http.post("/echo", content=json_of(LIMIT + 1), headers=JSON))
    assert http.post("/echo", json={"items": []}).status_code == 200
