"""An engine that keeps vLLM's pace and the shape of its replies, and computes nothing.

    python -m teacher_bench.engine '{"port": 8100, "model": "FOLDER"}'

Kept: time of a step as a function of the sequences in it, time to the first token, the limit of sequences at once and
the queue behind it, the events of a stream (`--stream-interval`), replies in one piece, the gauges. A sample's tokens
and its length follow from its seed. Not kept: log-probs (all −1) and everything else about sampling.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import uvloop

__all__ = ["Pace"]

CLOSE: Final = "#"  # ends an explanation of format mini


@dataclass(frozen=True, slots=True)
class Pace:
    """A step with `s` sequences takes `step_s + s · sequence_s`: 12 ms and 0.06 ms are 83 tokens/s for one sequence and
    12,000 tokens/s for 500, of the order of a 7B model on one H100."""

    port: int
    model: str
    step_s: float = 0.012
    sequence_s: float = 0.00006
    first_s: float = 0.04
    """From a free place to the first token: reading the prompt."""
    limit: int = 1024
    interval: int = 1
    """Tokens of an event after a stream's first."""
    shortest: int = 200
    longest: int = 200


@dataclass(slots=True, eq=False)
class _Sequence:
    transport: asyncio.Transport
    body: dict[str, Any]
    ids: list[int]
    reason: str
    first_at: float = 0.0
    sampled: int = 0
    sent: int = 0


@dataclass(slots=True)
class _Engine:
    pace: Pace
    words: dict[int, str]
    close: int
    names: dict[int, str] = field(init=False)
    waiting: deque[_Sequence] = field(default_factory=deque)
    running: list[_Sequence] = field(default_factory=list)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.names = {i: f'"token_id:{i}"' for i in [*self.words, self.close]}

    def answer(self, transport: asyncio.Transport, path: str, body: bytes) -> None:
        if path == "/v1/completions":
            self._complete(transport, json.loads(body))
        elif path == "/v1/models":
            models = [{"id": "paced", "object": "model", "parent": None, "max_model_len": 32_768}]
            _reply(transport, {"object": "list", "data": models})
        elif path == "/metrics":
            lines = [("process_start_time_seconds", self.started)]
            lines += [
                ("vllm:num_requests_running", len(self.running)),
                ("vllm:num_requests_waiting", len(self.waiting)),
            ]
            _write(transport, 200, "".join(f'{name}{{engine="0"}} {value}\n' for name, value in lines).encode())
        elif path in ("/health", "/version"):
            _reply(transport, {"version": "0.31.0"})
        else:
            _reply(transport, {"error": {"message": "Not Found"}}, 404)

    def _complete(self, transport: asyncio.Transport, body: dict[str, Any]) -> None:
        if body["logprobs"] == 2:  # asked how log-probs are reported: as after temperature
            gap = 2.0 / (body["temperature"] or 1.0)
            logprobs = {"token_logprobs": [-0.1], "top_logprobs": [{"token_id:5": -0.1, "token_id:6": -0.1 - gap}]}
            choice = {"index": 0, "text": "", "token_ids": [5], "logprobs": logprobs, "finish_reason": "length"}
            _reply(transport, {"choices": [choice]})
            return
        draw = random.Random(body["seed"])  # noqa: S311 - no secret
        ids = [*draw.choices(list(self.words), k=draw.randint(self.pace.shortest, self.pace.longest) - 1), self.close]
        cut = len(ids) > body["max_tokens"]
        if body["stream"]:
            transport.write(STREAM)
        self.waiting.append(_Sequence(transport, body, ids[: body["max_tokens"]], "length" if cut else "stop"))
        self.woken.set()

    async def run(self) -> None:
        pace, due = self.pace, 0.0
        while True:
            if not self.running and not self.waiting:
                self.woken.clear()
                await self.woken.wait()
                due = time.perf_counter()
            while self.waiting and len(self.running) < pace.limit:
                sequence = self.waiting.popleft()
                sequence.first_at = due + pace.first_s
                self.running.append(sequence)
            due += pace.step_s + pace.sequence_s * len(self.running)  # a GPU goes on while its server is late
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self._step(due)

    def _step(self, now: float) -> None:
        """One token for every sequence whose prompt is read."""
        for sequence in self.running:
            if sequence.first_at <= now and not sequence.transport.is_closing():
                sequence.sampled += 1
                self._tell(sequence)
        self.running = [s for s in self.running if s.sampled < len(s.ids) and not s.transport.is_closing()]
        if any(s.transport.is_closing() for s in self.waiting):
            self.waiting = deque(s for s in self.waiting if not s.transport.is_closing())

    def _tell(self, sequence: _Sequence) -> None:
        over = sequence.sampled == len(sequence.ids)
        if sequence.body["stream"]:
            if over or sequence.sent == 0 or sequence.sampled - sequence.sent >= self.pace.interval:
                chunk = b"data: " + self._event(sequence, over) + b"\n\n"
                sequence.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) + (LAST if over else b""))
                sequence.sent = sequence.sampled
        elif over:
            _write(sequence.transport, 200, self._event(sequence, over))

    def _event(self, sequence: _Sequence, over: bool) -> bytes:
        """As vLLM spells it; put together by hand, since this process shares the cores with what is measured."""
        sent, sampled = sequence.sent, sequence.sampled
        ids = sequence.ids[sent:sampled]
        text = " ".join(self.words.get(i, CLOSE) for i in ids)
        logprobs = (
            f'{{"text_offset":{list(range(sent, sampled))},"token_logprobs":{[-1.0] * len(ids)},'
            f'"tokens":[{",".join(map(self.names.__getitem__, ids))}],'
            f'"top_logprobs":[{",".join(f"{{{self.names[i]}:-1.0}}" for i in ids)}]}}'
        )
        reason, stop = (f'"{sequence.reason}"', str(self.close)) if over else ("null", "null")
        return (
            f'{{"id":"cmpl-{next(self.numbers):032x}","object":"text_completion","created":1700000000,"model":"paced",'
            f'"choices":[{{"index":0,"text":"{text}","logprobs":{logprobs},"finish_reason":{reason},'
            f'"stop_reason":{stop if sequence.reason == "stop" else "null"},'
            f'"prompt_token_ids":{"null" if sent else sequence.body["prompt"]},"token_ids":{ids}}}]}}'
        ).encode()


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as far as clients of vLLM speak it."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no sub-classes

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.split(b"\r\n")
        lengths = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")]
        length = lengths[0] if lengths else 0
        if len(rest) >= length:
            self._data = rest[length:]
            path = lines[0].split()[1].decode().partition("?")[0]
            self._engine.answer(self._transport, path, rest[:length])


STREAM: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST: Final = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _reply(transport: asyncio.Transport, body: dict[str, Any], status: int = 200) -> None:
    _write(transport, status, json.dumps(body).encode())


def _write(transport: asyncio.Transport, status: int, body: bytes) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    transport.write(head.encode() + body)


def _vocabulary(folder: Path) -> tuple[dict[int, str], int]:
    """Words that an explanation may be made of, by id, and the id of the closing tag."""
    vocabulary: dict[str, int] = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return {i: word for word, i in vocabulary.items() if word.isdigit()}, vocabulary[CLOSE]


async def _serve(pace: Pace) -> None:
    engine = _Engine(pace, *_vocabulary(Path(pace.model)))
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(engine), "127.0.0.1", pace.port)
    async with server:
        await engine.run()


if __name__ == "__main__":
    uvloop.run(_serve(Pace(**json.loads(sys.argv[1]))))
