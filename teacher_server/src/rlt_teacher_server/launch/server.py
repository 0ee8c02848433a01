"""One vLLM server as a child process: started, proved by a token, started again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from rlt_service.children import Child, Children, Pauses, ending
from rlt_teacher_server.engine.vllm.metrics import Progress, read_metrics
from rlt_teacher_server.launch.command import Command
from rlt_teacher_server.launch.errors import LaunchFailed
from rlt_teacher_server.launch.output import Output

__all__ = ["Planned", "Server"]

log = logging.getLogger(__name__)

POLL_S: Final = 0.25
STOP_S: Final = 15.0  # vLLM ends within a second of SIGTERM; GPUs of a large model take longer to let go
LAST_WORDS_S: Final = 5.0
LOOK_S: Final = 10.0
HUNG_S: Final = 600.0  # far beyond a forward pass, or the loading of other weights: a start takes minutes itself


@dataclass(frozen=True, slots=True)
class Planned:
    """One server, as it will be started."""

    name: str
    command: Command
    socket: Path
    model: str
    """What it calls the model."""

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"


class Server:
    """Args:
    what: the words that its failures begin with, for example `vllm-0 (vLLM 0.31.0, cpu)`.
    token: a token of the model's, to ask for another one with.
    start_s: seconds until it must have given a token.
    """

    def __init__(
        self, planned: Planned, children: Children, *, what: str, token: int, start_s: float, pauses: Pauses
    ) -> None:
        self._planned = planned
        self._children = children
        self._what = what
        self._token = token
        self._start_s = start_s
        self._pauses = pauses
        self._child: Child | None = None
        self._reading: asyncio.Task[None] | None = None
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done after the first start: with `LaunchFailed` if it failed. Later starts are tried for ever."""

    async def run(self) -> None:
        """Keep it running until cancelled."""
        while True:
            began = time.monotonic()
            try:
                how = await self._once()
            except (LaunchFailed, OSError) as error:
                how = str(error)
            if not self.up.done():
                self.up.set_exception(LaunchFailed(f"{self._what} {how}"))
                return
            pause = self._pauses.after(time.monotonic() - began)
            log.error("engine ended", extra={"engine": self._planned.name, "how": how, "again_in_s": pause})
            await asyncio.sleep(pause)

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop(signal.SIGTERM, STOP_S)
            await self._heard()

    async def _once(self) -> str:
        """From its start to its end, in words. Raises `LaunchFailed` or OSError where it was never ready."""
        child = self._child = await self._spawn()
        assert child.output is not None  # it was started with a pipe
        output = Output(self._planned.name)
        self._reading = asyncio.create_task(output.read(child.output))
        try:
            await self._until_ready(child)
        except LaunchFailed:
            child.kill()
            await child.ended()
            raise
        ready = not child.exit.done()
        if ready and not self.up.done():
            self.up.set_result(None)
        how = await self._ending(child) if ready else ending(await child.ended())
        await self._heard()
        return how if ready else f"{how} before it gave a token: {output.cause()}"

    async def _ending(self, child: Child) -> str:
        """How it ended, by itself or because it hung."""
        watch = asyncio.create_task(self._hung(child))
        try:
            how = ending(await child.ended())
            return f"was killed: it had {watch.result()}" if watch.done() else how
        finally:
            watch.cancel()

    async def _hung(self, child: Child) -> str:
        """Kill it once it has not answered, or not got on with what it has, for `HUNG_S`. In what way it hung."""
        progress, heard = Progress(), time.monotonic()
        async with self._http(LOOK_S) as http:
            while True:
                await asyncio.sleep(LOOK_S)
                now = time.monotonic()
                answer = await _metrics(http)
                heard = heard if answer is None else now
                read = read_metrics(answer) if answer else None
                stuck = progress.stalled(read, now) if read else 0.0
                if max(stuck, now - heard) > HUNG_S:
                    child.kill()
                    return f"not got on for {stuck:.0f} s" if stuck else f"not answered for {now - heard:.0f} s"

    def _http(self, timeout: float) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self._planned.socket))
        return httpx.AsyncClient(transport=transport, base_url="http://vllm", timeout=timeout)

    async def _heard(self) -> None:
        """Wait for its last words. What left its process group would keep the pipe open for ever."""
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=LAST_WORDS_S)

    async def _spawn(self) -> Child:
        self._planned.socket.unlink(missing_ok=True)
        argv, env = self._planned.command
        log.info("starting an engine", extra={"engine": self._planned.name, "command": shlex.join(argv)})
        return await self._children.spawn(argv, env=_inherited() | env, cwd=self._planned.socket.parent)

    async def _until_ready(self, child: Child) -> None:
        """Until it gave a token or ended. Raises `LaunchFailed` if it refuses to give one, or is late."""
        began = time.monotonic()
        async with self._http(self._start_s) as http:
            while not child.exit.done() and not await self._gives_a_token(http):
                if time.monotonic() - began > self._start_s:
                    raise LaunchFailed(f"gave no token within {self._start_s:g} s")
                await asyncio.wait([child.exit], timeout=POLL_S)
        if not child.exit.done():
            seconds = round(time.monotonic() - began, 1)
            log.info("engine ready", extra={"engine": self._planned.name, "pid": child.pid, "seconds": seconds})

    async def _gives_a_token(self, http: httpx.AsyncClient) -> bool:
        """vLLM's `/health` says 200 before a first request that kills it."""
        body: dict[str, Any] = {"model": self._planned.model, "prompt": [self._token], "max_tokens": 1}
        try:
            answer = await http.post("/v1/completions", json=body)
        except httpx.HTTPError:  # not listening yet, or dying
            return False
        if answer.is_client_error:
            raise LaunchFailed(f"refused the first request: {answer.text[:500]}")
        return answer.is_success


async def _metrics(http: httpx.AsyncClient) -> bytes | None:
    """None where it does not answer."""
    try:
        return (await http.get("/metrics")).content
    except httpx.HTTPError:
        return None


def _inherited() -> dict[str, str]:
    """Our environment without our settings, keys among them, and without a key that vLLM would ask us for."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RLT_") and name != "VLLM_API_KEY"}
