"""A vLLM server as the engine; vLLM itself is never imported.

One HTTP request a sample, each with its own seed: a list of equal prompts with one seed would give equal samples.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Self

import httpx

from rlt_client.errors import APIError, InvalidRequest, ItemError, Unavailable
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
from rlt_teacher_server.errors import Reason, item_error

__all__ = ["VLLMEngine"]

CONNECT_S: Final = 5.0  # an engine on the same network accepts at once or not at all
IDLE_S: Final = 3.0  # below the 5 s after which vLLM closes an idle connection: a request must not meet that moment
ASK_S: Final = 10.0  # for answers that take no work
HOT: Final = 2.0  # the highest temperature that vLLM takes
SAME: Final = 0.01  # nats; half precision rounds by less


class VLLMEngine:
    """Args:
    url: where the engine is, for example `http://127.0.0.1:8100`.
    probe: a prompt of the model's, to find out how the engine reports log-probs.
    model: what the engine calls the model; the one that it serves if None.
    eos_token_ids: end every sample, whatever a request says.
    concurrency: requests at the engine at once; more wait here.
    timeout: seconds for one sample.
    transport: replaces the network in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        probe: list[int],
        model: str | None = None,
        eos_token_ids: tuple[int, ...] = (),
        key: str | None = None,
        concurrency: int = 512,
        timeout: float = 1800.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._probe = probe
        self._wanted = model
        self._eos_token_ids = eos_token_ids
        self._slots = asyncio.Semaphore(concurrency)
        self._served: wire.Model | None = None
        self._limits: Limits | None = None
        self._connection: asyncio.Task[wire.Model] | None = None
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=concurrency, keepalive_expiry=IDLE_S),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.cancel()
            await asyncio.wait([self._connection])
        await self._http.aclose()

    async def connect(self) -> None:
        await self._connected()

    @property
    def limits(self) -> Limits:
        assert self._limits is not None  # known after `connect`
        return self._limits

    @property
    def version(self) -> str | None:
        return None

    async def gauges(self) -> Gauges:
        return Gauges(0, 0)

    async def holds(self) -> FullWeights | None:
        return None

    async def adapters(self) -> frozenset[str]:
        return frozenset()

    async def add(self, adapter: Adapter) -> None:
        raise InvalidRequest(f"{adapter.name}: this engine takes no adapters", type="adapters_unavailable")

    async def remove(self, name: str) -> None:
        """It has none."""

    async def replace(self, weights: FullWeights) -> None:
        raise InvalidRequest(f"{weights.revision}: this engine keeps its weights", type="weights_unavailable")

    async def alive(self) -> None:
        await self._call("GET", "/health", timeout=ASK_S)

    async def sample(self, request: SampleRequest, watch: Watch | None = None) -> Sample:
        served = await self._connected()
        check(request, self.limits)
        enqueued = time.perf_counter()
        async with self._slots:
            started = time.perf_counter()
            choice = await self._complete(served, with_stops(request, self._eos_token_ids))
            ids, logprobs = wire.columns(choice)
            if watch is not None:
                watch(ids)
            return Sample(ids, logprobs, wire.ending(choice), enqueued, started, time.perf_counter())

    async def _connected(self) -> wire.Model:
        """What the engine serves. Asked again after a failure, once for all who wait: it may have been started anew."""
        if self._served is not None:
            return self._served
        if self._connection is None or self._connection.done():
            self._connection = asyncio.create_task(self._connect(), name="connect to vLLM")
            self._connection.add_done_callback(_look_at)
        return await asyncio.shield(self._connection)

    async def _connect(self) -> wire.Model:
        try:
            served = await self._find()
            await self._prove(served)
        except ItemError as error:
            raise Unavailable(str(error), type="engine_misconfigured") from error
        self._served, self._limits = served, _limits(served)
        return served

    async def _find(self) -> wire.Model:
        response = await self._call("GET", "/v1/models", timeout=ASK_S)
        served = wire.parse(wire.Models, response.content).data
        fitting = [model for model in served if (model.id == self._wanted if self._wanted else model.parent is None)]
        if not fitting or fitting[0].max_model_len is None:
            names = ", ".join(model.id for model in served) or "nothing"
            wanted = self._wanted or "a model with a known context"
            raise Unavailable(f"the engine serves {names}, not {wanted}", type="engine_misconfigured")
        return fitting[0]

    async def _prove(self, served: wire.Model) -> None:
        """At temperature 2 the two most likely tokens must be half as far apart as at 0.

        Raises:
            Unavailable: it is not: the engine reports the model's own log-probs (vLLM's default), which no reward can
                be computed from.
        """
        own, scaled = [await self._gap(served, temperature) for temperature in (0.0, HOT)]
        if own > SAME and scaled > own / HOT + own / 4:
            detail = "start vLLM with --logprobs-mode processed_logprobs: by default they ignore temperature"
            raise Unavailable(detail, type="engine_misconfigured")

    async def _gap(self, served: wire.Model, temperature: float) -> float:
        """Nats between the two most likely tokens after the probe."""
        request = SampleRequest(self._probe, max_tokens=1, seed=0, temperature=temperature)
        first, second = wire.top_two(await self._complete(served, request, logprobs=2))
        return first - second

    async def _complete(self, served: wire.Model, request: SampleRequest, *, logprobs: int = 0) -> wire.Choice:
        body = wire.completion_request(served.id, request, logprobs=logprobs)
        response = await self._call("POST", "/v1/completions", body)
        choices = wire.parse(wire.Completion, response.content).choices
        if len(choices) != 1:
            raise item_error(Reason.engine_failed, f"{len(choices)} choices for one prompt")
        return choices[0]

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float | None = None
    ) -> httpx.Response:
        """Raises `Unavailable`, or `ItemError` where the engine says that the request itself is wrong."""
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        try:
            response = await self._http.request(method, path, json=body, **options)
        except httpx.HTTPError as error:
            self._served = None
            reason = str(error) or type(error).__name__
            raise Unavailable(f"the engine does not answer: {reason}", type="engine_down", retry_after=1.0) from error
        if response.is_success:
            return response
        refused = wire.refusal(response.status_code, response.content)
        if isinstance(refused, APIError):
            self._served = None
        raise refused


def _limits(served: wire.Model) -> Limits:
    assert served.max_model_len is not None  # `_find` takes no other
    return Limits(served.max_model_len)


def _look_at(task: asyncio.Task[wire.Model]) -> None:
    """Nobody may be left to see its exception."""
    if not task.cancelled():
        task.exception()
