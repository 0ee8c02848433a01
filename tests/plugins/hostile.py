"""Clients that no server should have: they hang, leave, lie and send garbage, over bare sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

__all__ = ["Hostile"]

CROWD = 200
GARBAGE = (b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 4096, b"GET " + b"a" * 100_000, b"\r\n" * 1000)


@dataclass(frozen=True)
class Hostile:
    """Hostile calls of one path. What they open stays open until the fixture ends."""

    connect: Callable[[], socket.socket]
    path: str

    def head(self, length: int) -> bytes:
        lines = (
            f"POST {self.path} HTTP/1.1",
            "host: localhost",
            "content-type: application/json",
            f"content-length: {length}",
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def hang_in_mid_body(self) -> None:
        for _ in range(CROWD):
            self.connect().sendall(self.head(1000) + b'{"items": [')
        for _ in range(CROWD):
            self.connect().sendall(b"POST / HTTP/1.1\r\nhost: loc")

    def leave_in_mid_body(self) -> None:
        for _ in range(CROWD):
            connection = self.connect()
            connection.sendall(self.head(1000) + b'{"items": [')
            connection.close()

    def never_read(self, body: bytes, times: int = 4) -> None:
        for _ in range(times):
            self.connect().sendall(self.head(len(body)) + body)

    def lie(self, body: bytes, length: int) -> bytes | None:
        """The begin of the reply; None where the server waits for the rest."""
        connection = self.connect()
        connection.sendall(self.head(length) + body)
        if length < len(body):
            return connection.recv(4096)
        connection.settimeout(0.3)
        with suppress(TimeoutError):
            return connection.recv(4096)
        return None

    def send_garbage(self) -> None:
        for garbage in GARBAGE:
            connection = self.connect()
            with suppress(OSError):  # the server may hang up while the garbage is still on its way
                connection.sendall(garbage)


@pytest.fixture
def hostile() -> Iterator[Callable[[str, str], Hostile]]:
    """Hostile clients of a server's address and path."""
    with ExitStack() as stack:

        def connect(url: str) -> socket.socket:
            address = urlsplit(url)
            return stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))

        yield lambda url, path: Hostile(lambda: connect(url), path)
