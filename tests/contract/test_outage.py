"""A vLLM that goes away and comes back, seen from the engine's interface and from the API."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import pytest_asyncio

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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    async def shut(self) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(self._to.hostname, self._to.port)
        self._open |= {writer, forth}
        await asyncio.gather(_copy(reader, forth), _copy(back, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, OSError):
        pass
    writer.close()


@pytest_asyncio.fixture(loop_scope="session")
async def door(vllm_engine):
    door = Door(vllm_engine)
    await door.open()
    yield door
    await door.shut()


async def test_an_engine_that_dies_is_unavailable_until_it_is_back(make, door, ask, same):
    async with make(door.url) as engine:
        before = await engine.sample(ask(seed=2))
        long = asyncio.create_task(engine.sample(ask(seed=3, max_tokens=200, stop_token_ids=(), temperature=1.9)))
        await asyncio.sleep(0.1)
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
            asked = (client.post("/explain", json=body), client.post("/generate", json=item), client.get("/readyz"))
            return [response.status_code for response in await asyncio.gather(*asked)]

    with ExitStack() as stack:
        url = await asyncio.to_thread(stack.enter_context, running(lambda: build(settings)))  # the door needs this loop
        assert await statuses() == [200] * 3
        await door.shut()
        assert await statuses() == [503] * 3
        await door.open()
        assert await statuses() == [200] * 3


@pytest.mark.slow
@pytest.mark.timeout(900)  # vLLM is started twice
async def test_a_killed_vllm(start_vllm, make, ask):
    """The engine's own process gets SIGKILL in mid-sample; another is started in its place."""
    port = free()[0]
    with start_vllm(port) as url:
        [core] = [p for p in psutil.process_iter(["cmdline"]) if f"--port {port}" in " ".join(p.info["cmdline"] or [])]
        async with make(url) as engine:
            long = asyncio.create_task(engine.sample(ask(max_tokens=230, stop_token_ids=(), temperature=1.9)))
            await asyncio.sleep(0.2)
            for process in (*core.children(recursive=True), core):
                os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(Unavailable):
                await long
            with start_vllm(port):
                assert (await engine.sample(ask())).token_ids
