"""The connections to a vLLM server, on real sockets, with both event loops that a server may run on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvloop

from rlt_teacher_server.engine.vllm import direct
from rlt_teacher_server.engine.vllm.direct import Direct

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Web:
    """Answers each request with the next script: what it writes, and then whether it closes the connection."""

    def __init__(self, *scripts: tuple[list[bytes], bool]) -> None:
        self.scripts = list(scripts)
        self.connections = self.open = 0
        self.asked: list[tuple[bytes, bytes]] = []
        self.begun, self.written, self.lost = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line
                )
                self.asked.append((head, await reader.readexactly(length)))
                self.begun.set()
                pieces, closes = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002)
                self.written.set()
                if closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.lost.set()
            self.open -= 1
            writer.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
FAILED = OK.replace(b"200 OK", b"500 No")


@pytest.fixture(params=LOOPS)
def run(request):
    """Runs a test with a server of these scripts, and a client of it."""

    def go(test, *scripts, socket=None):
        async def main():
            async with (
                _serving(Web(*scripts), socket) as (web, url),
                httpx.AsyncClient(base_url=url, transport=Direct(socket)) as client,
            ):
                await asyncio.wait_for(test(client, web), 60)

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(main())

    return go


@asynccontextmanager
async def _serving(web: Web, socket) -> AsyncIterator[tuple[Web, str]]:
    if socket:
        server = await asyncio.start_unix_server(web.serve, socket)
        url = "http://vllm"
    else:
        server = await asyncio.start_server(web.serve, "127.0.0.1", 0, backlog=1024)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield web, url
    finally:
        server.close()


def test_a_request_and_its_answer(run):
    async def test(client, web):
        response = await client.post("/v1/x?y=1", json={"a": 1})
        assert (response.status_code, response.content) == (200, b"hi")
        [(head, body)] = web.asked
        assert head.startswith(b"POST /v1/x?y=1 HTTP/1.1\r\n")
        assert b"Host: 127.0.0.1:" in head
        assert json.loads(body) == {"a": 1}

    run(test, ([OK], False))


def test_a_unix_socket(run, tmp_path):
    async def test(client, web):
        assert (await client.post("/x", content=b"?")).content == b"hi"

    run(test, ([OK], False), socket=tmp_path / "engine.sock")


def test_the_first_piece_comes_at_once_and_the_others_together(run, monkeypatch):
    monkeypatch.setattr(direct, "GATHER_S", 60.0)  # the end does not wait for it
    pieces = [b"one", b"two", b"three"]

    async def test(client, web):
        async with client.stream("POST", "/x", content=b"?") as response:
            assert [piece async for piece in response.stream] == [b"one", b"twothree"]

    run(test, ([HEAD, *map(chunk, pieces), END], False))


def test_readers_are_woken_a_few_at_a_time(run, monkeypatch):
    """What else the loop has to do goes between."""
    monkeypatch.setattr(direct, "GATHER_S", 0.0)
    woken: list[int] = []

    class Reader:
        def __init__(self, number: int) -> None:
            self.wake = lambda: woken.append(number)

    async def test(client, web):
        later = direct._Later()
        for number in range(40):
            later.wake(Reader(number))
        seen = []
        while len(woken) < 40:
            await asyncio.sleep(0)
            seen.append(len(woken))
        assert woken == [*range(40)]
        assert {16, 32} <= set(seen)

    run(test, ([OK], False))


def test_pieces_come_as_they_are_sent(run, monkeypatch):
    monkeypatch.setattr(direct, "GATHER_S", 0.0)
    pieces = [b"one", b"two", b"three"]

    async def test(client, web):
        async with client.stream("POST", "/x", content=b"?") as response:
            assert [piece async for piece in response.stream] == pieces

    run(test, ([HEAD, *map(chunk, pieces), END], False))


def test_a_connection_is_used_again(run):
    async def test(client, web):
        for _ in range(3):
            assert (await client.post("/x", content=b"?")).content == b"hi"
        assert web.connections == 1
        await asyncio.gather(*(client.post("/x", content=b"?") for _ in range(4)))
        assert web.connections == 4

    run(test, ([OK], False))


def test_one_that_was_idle_for_long_is_not(run, monkeypatch):
    monkeypatch.setattr(direct, "IDLE_S", 0.01)

    async def test(client, web):
        await client.post("/x", content=b"?")
        await asyncio.sleep(0.02)
        await client.post("/x", content=b"?")
        assert web.connections == 2

    run(test, ([OK], False))


def test_those_that_nobody_will_use_again_are_let_go(run, monkeypatch):
    """After a burst one connection is enough for all that follows."""
    monkeypatch.setattr(direct, "IDLE_S", 0.2)

    async def test(client, web):
        await asyncio.gather(*(client.post("/x", content=b"?") for _ in range(8)))
        assert web.open == 8
        async with asyncio.timeout(60):
            while web.open > 1:
                await client.post("/x", content=b"?")
                await asyncio.sleep(0.02)

    run(test, ([OK], False))


def test_one_that_the_server_closed_is_not(run):
    async def test(client, web):
        await client.post("/x", content=b"?")
        await web.lost.wait()
        await asyncio.sleep(0.01)
        assert (await client.post("/x", content=b"?")).status_code == 200
        assert web.connections == 2

    run(test, ([OK], True), ([OK], False))


def test_one_on_which_the_server_failed_is_not(run):
    """vLLM closes it a moment after its answer: the next request would be lost with it."""

    async def test(client, web):
        assert (await client.post("/x", content=b"?")).status_code == 500
        assert (await client.post("/x", content=b"?")).status_code == 200
        assert web.connections == 2

    run(test, ([FAILED], False), ([OK], False))


def test_a_body_that_is_not_read_to_its_end_closes_the_connection(run):
    """So that the server notices: it would go on generating for nobody."""

    async def test(client, web):
        async with client.stream("POST", "/x", content=b"?") as response:
            async for piece in response.stream:
                assert piece == b"one"
                break
        await asyncio.wait_for(web.lost.wait(), 60)

    run(test, ([HEAD, chunk(b"one")], False))


def test_a_caller_who_leaves_closes_the_connection(run):
    async def test(client, web):
        waiting = asyncio.create_task(client.post("/x", content=b"?"))
        await web.begun.wait()
        waiting.cancel()
        await asyncio.wait_for(web.lost.wait(), 60)

    run(test, ([], False))


@pytest.mark.parametrize("said", [[], [b"HTTP/1.1 200 OK\r\n"], [HEAD, chunk(b"one")], [OK[:-1]]])
def test_an_answer_that_breaks_off(run, said):
    async def test(client, web):
        with pytest.raises(httpx.ReadError, match="broke off"):
            await client.post("/x", content=b"?")

    run(test, (said, True))


def test_something_that_does_not_speak_http(run):
    async def test(client, web):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/x", content=b"?")

    run(test, ([b"220 mail.example ESMTP\r\n"], False))


def test_an_answer_that_nobody_asked_for_is_never_taken_for_one(run):
    async def test(client, web):
        assert (await client.post("/x", content=b"?")).content == b"hi"
        await web.written.wait()
        await asyncio.sleep(0.02)
        assert (await client.post("/x", content=b"?")).content == b"ho"
        assert web.connections == 2

    run(test, ([OK, OK.replace(b"hi", b"no")], False), ([OK.replace(b"hi", b"ho")], False))


def test_two_answers_at_once_are_one_too_many(run):
    async def test(client, web):
        assert (await client.post("/x", content=b"?")).content == b"hi"
        assert (await client.post("/x", content=b"?")).content == b"ho"
        assert web.connections == 2

    run(test, ([OK + FAILED], False), ([OK.replace(b"hi", b"ho")], False))


@pytest.mark.parametrize("apart", [False, True])
def test_what_goes_before_an_answer_is_none(run, apart):
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"

    async def test(client, web):
        response = await client.post("/x", content=b"?")
        assert (response.status_code, response.content) == (200, b"hi")
        assert "link" not in response.headers

    run(test, ([early, OK] if apart else [early + OK], False))


def test_another_protocol_is_no_answer(run):
    async def test(client, web):
        with pytest.raises(httpx.TransportError):
            await client.post("/x", content=b"?")

    run(test, ([b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nyz"], False))


def test_a_header_cannot_begin_another_one(run):
    async def test(client, web):
        with pytest.raises(httpx.LocalProtocolError, match="line break"):
            await client.post("/x", content=b"?", headers={"authorization": "Bearer a\nx-admin: 1"})
        assert web.connections == 0

    run(test, ([OK], False))


def test_nobody_there(run, tmp_path):
    async def test(client, web):
        async with httpx.AsyncClient(transport=Direct()) as other:
            with pytest.raises(httpx.ConnectError):
                await other.post("http://127.0.0.1:9/x")
        async with httpx.AsyncClient(transport=Direct(tmp_path / "none.sock")) as other:
            with pytest.raises(httpx.ConnectError):
                await other.post("http://vllm/x")

    run(test, ([OK], False))


def test_hundreds_of_streams(run):
    async def test(client, web):
        async def read():
            async with client.stream("POST", "/x", content=b"?") as response:
                return b"".join([piece async for piece in response.stream])

        bodies = await asyncio.gather(*(read() for _ in range(300)))
        assert bodies == [b"onetwo"] * 300
        assert web.connections == 300

    run(test, ([HEAD, chunk(b"one"), chunk(b"two"), END], False))
