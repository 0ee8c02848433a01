"""Connections in small pools: as many as allowed, reused, and given back whatever happens to a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from rlt_client._http import HTTP
from rlt_client._lanes import WIDTH, Lanes
from rlt_client.errors import TransportError
from rlt_client.schemas.common import Reply


class Server:
    """Counts connections; answers when told to."""

    def __init__(self) -> None:
        self.connections = 0
        self.waiting = 0
        self.go = asyncio.Event()
        self.hang_up = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self.head(reader) and await self.go.wait() and not self.hang_up:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                await writer.drain()
        finally:
            writer.close()

    async def head(self, reader: asyncio.StreamReader) -> bool:
        try:
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        self.waiting += 1
        return True


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    yield server, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    listening.close()


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 the other side has no event to wait for
            await asyncio.sleep(0.005)


async def test_calls_one_after_the_other_share_one_connection() -> None:
    async with running() as (server, url), HTTP(url) as http:
        server.go.set()
        for _ in range(5):
            await http.request("GET", "/", reply=Reply)
        assert server.connections == 1


async def test_calls_at_once_open_no_more_connections_than_allowed() -> None:
    allowed = 2 * WIDTH + 3
    async with running() as (server, url), HTTP(url, max_connections=allowed) as http:
        calls = [asyncio.create_task(http.request("GET", "/", reply=Reply)) for _ in range(3 * allowed)]
        await until(lambda: server.waiting == allowed)
        server.go.set()
        await asyncio.gather(*calls)
        assert server.connections == allowed
        assert server.waiting == 3 * allowed


@pytest.mark.parametrize("how", ["cancelled", "hung up"])
async def test_a_request_that_fails_gives_its_place_back(how: str) -> None:
    async with running() as (server, url):
        lanes = Lanes(1)
        async with HTTP(url, max_connections=1, transport=lanes) as http:
            call = asyncio.create_task(http.request("GET", "/", reply=Reply, retry=False))
            await until(lambda: server.waiting == 1)
            if how == "cancelled":
                call.cancel()
            server.hang_up = how == "hung up"
            server.go.set()
            await asyncio.gather(call, return_exceptions=True)
            assert lanes._busy == [0]
            server.hang_up = False
            await http.request("GET", "/", reply=Reply)


async def test_a_refused_connection_gives_its_place_back() -> None:
    lanes = Lanes(1)
    async with HTTP("http://127.0.0.1:1", transport=lanes) as http:
        for _ in range(3):
            with pytest.raises(TransportError):
                await http.request("GET", "/", reply=Reply, retry=False)
        assert lanes._busy == [0]


async def test_a_reply_holds_its_place_until_its_body_is_read() -> None:
    async with running() as (server, url), httpx.AsyncClient(transport=(lanes := Lanes(2))) as client:
        server.go.set()
        async with client.stream("GET", url) as response:
            assert lanes._busy == [1]
            await response.aread()
        assert lanes._busy == [0]


async def test_proxies_of_the_environment_stay_in_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with running() as (server, url), HTTP(url) as http:
        server.go.set()
        with pytest.raises(TransportError):
            await http.request("GET", "/", reply=Reply, retry=False)
        assert server.connections == 0
