"""A vLLM that goes away and comes back, seen from the engine's interface and from the API."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import pytest_asyncio
from plugins.fake_engine import eventually

from rlt_client.errors import Unavailable
from rlt_local.ports import free
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.settings import Settings

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.engine]


class Door:
    """A port before the engine's. Shut, it refuses connections and breaks open ones, as the end of a process does."""

    def __init__(self, engine: str) -> None:
        self._to = urlsplit(engine)
        self.port = free()[0]
        self._open: set[asyncio.StreamWriter] = set()
        self._answers = asyncio.Event()
        self._asked = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._answers.set()
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    def hold(self) -> asyncio.Event:
        """Keep the engine's answers back until it is shut. Set once the engine has been asked something."""
        self._answers.clear()
        self._asked.clear()
        return self._asked

    async def shut(self) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()
        self._answers.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(self._to.hostname, self._to.port)
        self._open |= {writer, forth}
        if not self._server.is_serving():  # it was shut meanwhile
            await self.shut()
        await asyncio.gather(self._ask(reader, forth), self._answer(back, writer))

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for data in _read(reader):
            writer.write(data)
            self._asked.set()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for data in _read(reader):
            await self._answers.wait()
            writer.write(data)
        writer.close()


async def _read(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    with suppress(OSError):
        while data := await reader.read(65_536):
            yield data


@pytest_asyncio.fixture(loop_scope="session")
async def door(vllm_engine):
    door = Door(vllm_engine)
    await door.open()
    yield door
    await door.shut()


async def test_an_engine_that_dies_is_unavailable_until_it_is_back(make, door, ask, same):
    async with make(door.url) as engine:
        before = await engine.sample(ask(seed=2))
        asked = door.hold()
        long = asyncio.create_task(engine.sample(ask(seed=3, max_tokens=200, stop_token_ids=(), temperature=1.9)))
        await asked.wait()
        await door.shut()
        with pytest.raises(Unavailable) as caught:
            await long
        assert caught.value.type == "engine_down"
        with pytest.raises(Unavailable):
            await engine.sample(ask(seed=2))
        with pytest.raises(Unavailable):
            await engine.alive()
        await door.open()
        assert same(await engine.sample(ask(seed=2)), before)


@pytest.mark.slow
async def test_the_api_says_503_and_recovers(tiny_model, door, mini):
    settings = Settings(model=str(tiny_model), engine=door.url, format="mini")
    body = {"question": mini.probe.question, "answer": mini.probe.answer, "max_tokens": 20, "n": 3}
    item = {"items": [{"prompt_token_ids": [1, 2]}], "max_tokens": 3}

    async def statuses():
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            assert (await client.get("/livez")).status_code == 200
            asked = await asyncio.gather(client.post("/explain", json=body), client.post("/generate", json=item))
            ready = await client.get("/readyz")  # alone: of a busy engine it is told at the next look
            return [response.status_code for response in (*asked, ready)]

    async def serves():
        while (found := await statuses()) != [200] * 3:
            assert set(found) <= {200, 503}

    with ExitStack() as stack:
        url = await asyncio.to_thread(stack.enter_context, running(lambda: build(settings)))  # the door needs this loop
        await serves()
        await door.shut()
        assert await statuses() == [503] * 3
        await door.open()
        await serves()


@pytest.mark.slow
@pytest.mark.timeout(900)  # vLLM is started twice
async def test_a_killed_vllm(start_vllm, make, ask):
    """The engine's own process gets SIGKILL in mid-sample; another is started in its place."""
    port = free()[0]
    with start_vllm(port) as url:
        [core] = [p for p in psutil.process_iter(["cmdline"]) if f"--port {port}" in " ".join(p.info["cmdline"] or [])]
        async with make(url) as engine:
            written = []

            async def without_end():
                while True:
                    await engine.sample(ask(max_tokens=230, stop_token_ids=(), temperature=1.9), written.extend)

            long = asyncio.create_task(without_end())
            await eventually(lambda: written or long.done())
            for process in (*core.children(recursive=True), core):
                os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(Unavailable):
                await long
            with start_vllm(port):
                assert (await engine.sample(ask())).token_ids
