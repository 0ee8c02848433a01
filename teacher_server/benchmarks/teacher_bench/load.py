"""Streams in a process of their own: as many clients as told, each asking again when its stream has ended.

Bare sockets and as little reading as counting takes: an HTTP library would take longer than the server that is
measured. The clients begin one after the other, spread over `ramp_s`; what is counted begins after that.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, cast
from urllib.parse import urlsplit

import uvloop

__all__ = ["OPERATIONS", "Load", "Result", "apply"]

OPERATIONS: Final = ("+5", "*3", "+11", "*7", "+1", "+23")


@dataclass(frozen=True, slots=True)
class Load:
    """`clients` streams at once for `seconds`, or until `streams` have ended. `prompt` given: straight to an engine."""

    url: str
    clients: int
    ramp_s: float
    seconds: float = 0.0
    streams: int = 0
    max_tokens: int = 200
    prompt: tuple[int, ...] = ()
    engine_model: str = "paced"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    tokens_per_s: float
    streams: int
    failed: int
    first_p50_ms: float
    first_p95_ms: float
    first_failure: str


def apply(load: Load) -> Result:
    """Run it in another process: its Python must not share the server's or the caller's."""
    argv = [sys.executable, "-m", "teacher_bench.load", json.dumps(asdict(load))]
    output = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
    return Result(**json.loads(output))


@dataclass(slots=True)
class _Tally:
    counting: bool = False
    tokens: int = 0
    ended: int = 0
    firsts: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.firsts)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3 if ordered else float("nan")


class _Stream(asyncio.Protocol):
    """One connection after whose request events come; counts the tokens of each as it comes."""

    def __init__(self, tally: _Tally, native: bool) -> None:
        self._tally = tally
        self._native = native
        self._began = 0.0
        self._rest = b""
        self._first = True
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own are no sub-classes

    def ask(self, request: bytes) -> None:
        self._began, self._first, self._rest = time.perf_counter(), True, b""
        self.ended = asyncio.get_running_loop().create_future()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                self._event(line[6:])
            elif line.startswith(b"HTTP/1.1 ") and not line.startswith(b"HTTP/1.1 200"):
                self._fail(line.decode())
            elif line.startswith(b"data: [DONE]"):
                self._end()

    def _event(self, line: bytes) -> None:
        event = json.loads(line)
        if self._native:
            self._count(event["tokens"] if event["event"] == "delta" else 0)
            if event["event"] in ("done", "failed"):
                self._end() if event["event"] == "done" else self._fail(str(event))
        else:
            self._count(len(event["choices"][0]["token_ids"]))

    def _count(self, tokens: int) -> None:
        if not tokens or not self._tally.counting:
            self._first = self._first and not tokens
            return
        if self._first:
            self._tally.firsts.append(time.perf_counter() - self._began)
            self._first = False
        self._tally.tokens += tokens

    def _end(self) -> None:
        self._tally.ended += 1
        if not self.ended.done():
            self.ended.set_result(None)

    def _fail(self, reason: str) -> None:
        self._tally.failures.append(reason)
        self.transport.close()
        if not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self._tally.failures.append(f"the connection broke: {error}")
            self.ended.set_result(None)


def _bodies(load: Load) -> Iterator[dict[str, Any]]:
    draw = random.Random(load.seed)  # noqa: S311 - no secret
    for number in itertools.count():
        seed = load.seed * 1_000_000 + number
        if load.prompt:
            yield _completion(load, seed)
            continue
        question = f"Q {draw.randrange(61)} A {draw.choice(OPERATIONS)} B {draw.choice(OPERATIONS)}"
        answer = str(draw.randrange(61))
        yield {"question": question, "answer": answer, "max_tokens": load.max_tokens, "seed": seed, "stream": True}


def _completion(load: Load, seed: int) -> dict[str, Any]:
    """What the teacher server itself asks a vLLM."""
    from rlt_teacher_server.engine import wire
    from rlt_teacher_server.engine.base import SampleRequest

    request = SampleRequest(list(load.prompt), load.max_tokens, seed, temperature=0.7, stop=("#",))
    return wire.completion_request(load.engine_model, request) | {"stream": True}


def _request(load: Load, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    path = "/v1/completions" if load.prompt else "/explain"
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    return f"{head}\r\n\r\n".encode() + content


async def _run(load: Load) -> Result:
    address = urlsplit(load.url)
    host, port = address.hostname or "", address.port or 80
    tally, bodies = _Tally(), _bodies(load)
    loop = asyncio.get_running_loop()
    left = iter(range(load.streams)) if load.streams else itertools.count()
    until = time.perf_counter() + load.ramp_s + (load.seconds or float("inf"))

    async def client(place: int) -> None:
        await asyncio.sleep(load.ramp_s * place / load.clients)
        stream = None
        for _ in left:
            if time.perf_counter() >= until:
                break
            if stream is None or stream.transport.is_closing():
                _, stream = await loop.create_connection(lambda: _Stream(tally, not load.prompt), host, port)
            stream.ask(_request(load, next(bodies)))
            if load.seconds:
                await asyncio.wait([stream.ended], timeout=until - time.perf_counter())
            else:
                await stream.ended
        if stream is not None:
            stream.ended.cancel()
            stream.transport.close()

    clients = asyncio.gather(*(client(place) for place in range(load.clients)))
    if load.seconds:
        await asyncio.sleep(load.ramp_s)
    tally.counting, began = True, time.perf_counter()
    await clients
    seconds = time.perf_counter() - began
    first = tally.failures[0] if tally.failures else ""
    return Result(
        tally.tokens / seconds, tally.ended, len(tally.failures), tally.quantile(0.5), tally.quantile(0.95), first
    )


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(_run(Load(**json.loads(sys.argv[1])))))))
