"""The `Engine` protocol on a vLLM server.

One HTTP request a sample, each with its own seed: a list of equal prompts with one seed would give equal samples.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx

from rlt_client.bearer import Key
from rlt_client.errors import InvalidRequest, ItemError, Unavailable
from rlt_teacher_server.engine import wire
from rlt_teacher_server.engine.base import (
    Adapter,
    FullWeights,
    Gauges,
    Limits,
    Sample,
    SampleRequest,
    Watch,
    check,
    with_stops,
)
from rlt_teacher_server.engine.vllm.adapters import Adapters
from rlt_teacher_server.engine.vllm.metrics import Metrics, Progress, read_metrics
from rlt_teacher_server.engine.vllm.server import Server
from rlt_teacher_server.engine.vllm.shared import Shared
from rlt_teacher_server.engine.vllm.stream import Stream
from rlt_teacher_server.engine.vllm.weights import Weights

__all__ = ["VLLMEngine"]

HOT: Final = 2.0  # the highest temperature that vLLM takes
SAME: Final = 0.01  # nats; half precision rounds by less
LOOK_S: Final = 2.0  # vLLM takes longer to start: no restart between two looks goes unseen
STALL_S: Final = 120.0  # for one forward pass; the slowest are those of long prompts
INFO_S: Final = 60.0  # it looks for compilers and devices when it is asked for the first time
NO_METRICS: Final = "it does not tell its load at /metrics: start vLLM without --disable-log-stats"


@dataclass(frozen=True, slots=True)
class _Found:
    model: wire.Model
    version: str


class VLLMEngine:
    """Args:
    address: where the engine is: `http://127.0.0.1:8100`, `https://…`, or `unix:` and the path of a socket.
    probe: a prompt of the model's, to find out how the engine reports log-probs.
    weights: what the engine was started with; files of other policies must look like these.
    model: what the engine calls the model; the one that it serves if None.
    eos_token_ids: end every sample, whatever a request says.
    concurrency: requests at the engine at once; more wait here.
    timeout: seconds for one sample.
    transport: replaces the network in tests.
    """

    def __init__(
        self,
        address: str,
        *,
        probe: list[int],
        weights: FullWeights | None = None,
        model: str | None = None,
        eos_token_ids: tuple[int, ...] = (),
        key: Key | None = None,
        concurrency: int = 512,
        timeout: float = 1800.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._probe = probe
        self._wanted = model
        self._eos_token_ids = eos_token_ids
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self._server = Server(address, key=key, transport=transport)
        self._adapters = Adapters(self._server, weights.folder if weights else None)
        self._weights = Weights(self._server, weights, probe)
        self._found: _Found | None = None
        self._limits: Limits | None = None
        self._connection = Shared(self._connect, "connect to vLLM")
        self._look = Shared(self._metrics, "look at vLLM")
        self._looked = -math.inf
        self._born: float | None = None
        self._progress = Progress()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.stop()
        await self._look.stop()
        await self._server.aclose()

    async def connect(self) -> None:
        await self._connection()
        self._weights.accept()

    @property
    def limits(self) -> Limits:
        assert self._limits is not None  # known after `connect`
        return self._limits

    @property
    def version(self) -> str | None:
        return self._found.version if self._found else None

    # Samples

    async def sample(self, request: SampleRequest, watch: Watch | None = None) -> Sample:
        try:
            return await self._sample(await self._connected(), request, watch)
        except Unavailable:
            self._found = None
            raise

    async def _sample(self, found: _Found, request: SampleRequest, watch: Watch | None) -> Sample:
        check(request, self.limits)
        enqueued = time.perf_counter()
        async with self._slots:
            await self._make_sure_of_weights()
            started = time.perf_counter()
            body = wire.completion_request(request.adapter or found.model.id, with_stops(request, self._eos_token_ids))
            choice = await (self._complete(body) if watch is None else self._stream(body, watch))
            reason = wire.ending(choice)
            ids, logprobs = wire.columns(choice)
            return Sample(ids, logprobs, reason, enqueued, started, time.perf_counter())

    async def _complete(self, body: dict[str, Any]) -> wire.Choice:
        reply = await self._server.call("POST", "/v1/completions", body, limit=self._timeout)
        return wire.only(reply.read(wire.Completion))

    async def _stream(self, body: dict[str, Any], watch: Watch) -> wire.Choice:
        stream = Stream()
        async with self._server.stream("/v1/completions", body | {"stream": True}, limit=self._timeout) as pieces:
            async for piece in pieces:
                if ids := stream.feed(piece):
                    watch(ids)
        return stream.choice()

    async def _make_sure_of_weights(self) -> None:
        """A server that was started anew has its first weights again, and says nothing of it."""
        if self._weights.replaced and time.monotonic() - self._looked > LOOK_S:
            await self._look()
        if self._weights.unusable is not None:
            raise Unavailable(self._weights.unusable, type="engine_down", retry_after=1.0)

    # How it is

    async def gauges(self) -> Gauges:
        read = await self._look()
        return Gauges(read.running, read.waiting)

    async def alive(self) -> None:
        """A server that computes nothing but heartbeats is not alive."""
        reply = await self._server.call("GET", "/health")
        if not reply.ok:
            raise wire.refusal(reply.status, reply.body)
        stalled = self._progress.stalled(await self._look(), time.monotonic())
        if stalled > STALL_S:
            detail = f"the engine has not got on for {stalled:.0f} s, with requests in it"
            raise Unavailable(detail, type="engine_down", retry_after=1.0)

    async def _metrics(self) -> Metrics:
        reply = await self._server.call("GET", "/metrics")
        if not reply.ok or (read := read_metrics(reply.body)) is None:
            raise Unavailable(NO_METRICS, type="engine_misconfigured")
        if self._born not in (None, read.born):
            self._adapters.forget()
            self._weights.lose()
            self._found = None
        self._looked, self._born = time.monotonic(), read.born
        return read

    # Policies

    async def holds(self) -> FullWeights | None:
        return await self._weights.holds()

    async def adapters(self) -> frozenset[str]:
        return await self._adapters.names()

    async def add(self, adapter: Adapter) -> None:
        await self._connected()
        self._must_be_one("adapters_unavailable")
        await self._adapters.add(adapter)

    async def remove(self, name: str) -> None:
        await self._adapters.remove(name)

    async def replace(self, weights: FullWeights) -> None:
        found = await self._connected()
        self._must_be_one("weights_unavailable")
        await self._weights.check(weights)
        await self._adapters.clear()
        await self._weights.replace(found.model, weights)
        self._found = None  # how it reports log-probs was not asked of one that could not be used

    def _must_be_one(self, problem: str) -> None:
        """Of several processes at one port each knows adapters of its own, and none tells when it was started."""
        if self._born is None:
            raise InvalidRequest("start vLLM with --api-server-count 1", type=problem)

    # What is there

    async def _connected(self) -> _Found:
        """Asked again after a failure, once for all who wait: it may have been started anew."""
        return self._found or await self._connection()

    async def _connect(self) -> _Found:
        try:
            found = _Found(await self._find(), f"vllm {await self._version()}")
            await self._metrics()
            self._adapters.info = self._weights.info = await self._info()
            self._weights.note(await self._weights.version())
            if self._weights.sound:
                await self._prove(found.model)
        except ItemError as error:
            raise Unavailable(str(error), type="engine_misconfigured") from error
        self._found, self._limits = found, Limits(found.model.max_model_len or 0)
        return found

    async def _version(self) -> str:
        return (await self._server.call("GET", "/version")).read(wire.Version).version

    async def _find(self) -> wire.Model:
        served = (await self._server.call("GET", "/v1/models")).read(wire.Models).data
        fitting = [model for model in served if (model.id == self._wanted if self._wanted else model.parent is None)]
        if not fitting or fitting[0].max_model_len is None:
            names = ", ".join(model.id for model in served) or "nothing"
            wanted = self._wanted or "a model with a known context"
            raise Unavailable(f"the engine serves {names}, not {wanted}", type="engine_misconfigured")
        return fitting[0]

    async def _info(self) -> wire.Info | None:
        """Of its settings; None unless it is in dev mode. It asks pip for its packages, and fails without pip."""
        reply = await self._server.call("GET", "/server_info?config_format=json", limit=INFO_S)
        failed = not reply.ok and reply.status != 404
        self._weights.silent = f"its /server_info answers {reply.status}: {reply.message}" if failed else None
        return reply.read(wire.Info) if reply.ok else None

    async def _prove(self, model: wire.Model) -> None:
        """At temperature 2 the two most likely tokens must be half as far apart as at 0.

        Raises:
            Unavailable: it is not: the engine reports the model's own log-probs (vLLM's default), which no reward can
                be computed from.
        """
        own, scaled = [await self._gap(model, temperature) for temperature in (0.0, HOT)]
        if own > SAME and scaled > own / HOT + own / 4:
            detail = "start vLLM with --logprobs-mode processed_logprobs: by default they ignore temperature"
            raise Unavailable(detail, type="engine_misconfigured")

    async def _gap(self, model: wire.Model, temperature: float) -> float:
        """Nats between the two most likely tokens after the probe."""
        request = SampleRequest(self._probe, max_tokens=1, seed=0, temperature=temperature)
        likeliest = wire.top(await self._complete(wire.completion_request(model.id, request, logprobs=2)))
        first, second, *_ = sorted(likeliest.values(), reverse=True)
        return first - second
