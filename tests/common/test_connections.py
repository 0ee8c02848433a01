"""Connections of callers that hang, dribble or send more head than there is; over bare sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from rlt_service import connections
from rlt_service.testing import running

Connect = Callable[[], socket.socket]
SOON_S = 30.0  # on a busy machine


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_S", "SILENCE_S", "DRAIN_S", "GRACE_S"):
        monkeypatch.setattr(connections, name, 0.3)


@pytest.fixture
def connect(url: str) -> Iterator[Connect]:
    yield from connecting(url)


def connecting(url: str) -> Iterator[Connect]:
    address = urlsplit(url)
    with ExitStack() as stack:
        yield lambda: stack.enter_context(
            socket.create_connection((str(address.hostname), address.port or 80), timeout=SOON_S)
        )


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes. Raises `TimeoutError` where it does not."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def head(token: str, length: int, path: str = "/echo") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "host: localhost",
        f"authorization: Bearer {token}",
        "content-type: application/json",
        f"content-length: {length}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nhost: loc", b"\r\n\r\n"])
def test_who_never_ends_a_head_is_let_go(connect: Connect, sent: bytes) -> None:
    connection = connect()
    connection.sendall(sent)
    assert rest(connection) == b""


@pytest.mark.usefixtures("impatient")
def test_dribbling_a_head_does_not_prolong_it(connect: Connect) -> None:
    connection = connect()
    began = time.monotonic()
    with suppress(OSError):
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        while time.monotonic() - began < SOON_S:
            connection.sendall(b"x: y\r\n")
            time.sleep(0.05)
    assert time.monotonic() - began < SOON_S


def test_a_head_without_an_end_is_refused(connect: Connect) -> None:
    connection = connect()
    with suppress(OSError):  # it hangs up in mid-sentence
        connection.sendall(b"GET /livez HTTP/1.1\r\n" + b"x: yyyyyyyyyyyyyyyyyyyyyy\r\n" * 20_000)
    assert rest(connection)[:12] in (b"HTTP/1.1 431", b"")


def test_an_address_without_an_end_is_refused(connect: Connect) -> None:
    connection = connect()
    with suppress(OSError):
        connection.sendall(b"GET /" + b"a" * 500_000)
    assert rest(connection)[:12] in (b"HTTP/1.1 431", b"")


@pytest.mark.usefixtures("impatient")
def test_a_body_that_stops_coming_is_given_up(connect: Connect, tokens: dict[str, str]) -> None:
    connection = connect()
    connection.sendall(head(tokens["reward"], 1000) + b'{"items": [')
    assert rest(connection) == b""


def test_a_body_that_comes_slowly_is_taken(
    connect: Connect, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SILENCE_S", 2.0)
    body = b'{"items": []}'
    connection = connect()
    connection.sendall(head(tokens["reward"], len(body)))
    for byte in body:
        time.sleep(0.2)  # 2.6 s in all, which is longer than any silence may be
        connection.sendall(bytes([byte]))
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.usefixtures("impatient")
def test_who_was_refused_cannot_go_on_for_ever(connect: Connect) -> None:
    """The reply comes before the body; the rest of it is read for a while, and then no more."""
    connection = connect()
    connection.sendall(head("rlt_wrong", 10**9))
    assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    until = time.monotonic() + SOON_S
    with suppress(OSError):
        while time.monotonic() < until:
            connection.sendall(b"x" * 1000)
            time.sleep(0.05)
    assert time.monotonic() < until


@pytest.mark.usefixtures("impatient")
def test_a_connection_between_two_requests_may_rest(connect: Connect, tokens: dict[str, str]) -> None:
    body = b'{"items": []}'
    connection = connect()
    for _ in range(3):
        connection.sendall(head(tokens["reward"], len(body)) + body)
        received = b""
        while not received.endswith(b"}"):
            piece = connection.recv(65536)
            assert piece, received
            received += piece
        assert received.startswith(b"HTTP/1.1 200")
        time.sleep(0.8)


@pytest.mark.usefixtures("impatient")
def test_a_slow_reply_is_no_silence_of_the_caller(build: Any, tokens: dict[str, str]) -> None:
    import asyncio

    from rlt_client.schemas.common import Scope
    from rlt_service.auth import requires
    from rlt_service.routing import Router

    router = Router()

    @router.post("/slow", dependencies=[requires(Scope.reward)])
    async def slow(body: dict[str, Any]) -> str:
        await asyncio.sleep(1.5)
        return "done"

    with running(lambda: build(routers=[router])) as url, httpx.Client(base_url=url) as http:
        headers = {"authorization": f"Bearer {tokens['reward']}"}
        assert http.post("/slow", json={}, headers=headers).json() == "done"
        for connect in connecting(url):  # two at once on one connection: the second waits for the first
            connection = connect()
            connection.sendall((head(tokens["reward"], 2, "/slow") + b"{}") * 2)
            received = b""
            while received.count(b"HTTP/1.1 200") < 2 or received.count(b"done") < 2:
                received += connection.recv(65536)


@pytest.mark.parametrize(
    "smuggled",
    [
        "content-length: 13\r\ncontent-length: 5",
        "content-length: 13\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 13",
        "content-length: +13",
        "content-length: 13, 13",
        "content-length: 1e1",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding : chunked",
        "content-length : 13",
        "x: y\n content-length: 13",
        "x: a\x00b\r\ncontent-length: 13",
        "x: a\rb: c\r\ncontent-length: 13",
    ],
)
def test_requests_that_two_servers_could_read_differently_are_refused(
    connect: Connect, tokens: dict[str, str], smuggled: str
) -> None:
    """A proxy and we must agree where a request ends, or a second one can be hidden in the first one's body."""
    connection = connect()
    start = f"POST /echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tokens['reward']}\r\n"
    start += "content-type: application/json\r\n"
    connection.sendall((start + smuggled + "\r\n\r\n").encode() + b'{"items": []}')
    reply = connection.recv(65536)
    assert reply.split(b" ", 2)[1] == b"400", reply[:200]


def test_there_are_no_web_sockets(connect: Connect) -> None:
    connection = connect()
    upgrade = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAA"
    connection.sendall(f"GET /echo HTTP/1.1\r\nhost: x\r\n{upgrade}\r\n\r\n".encode())
    assert connection.recv(65536).split(b" ", 2)[1] in (b"401", b"404", b"405")
