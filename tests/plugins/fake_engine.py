"""An engine without a model. It keeps what the pool lives on: weights and adapters that a start forgets, samples that
take time and die with the process, changes that may be refused, and what must not happen while samples run. It
computes nothing: the end of a sample names what the engine held while it was made."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from rlt_client.errors import InvalidRequest, Unavailable
from rlt_teacher_server.engine.base import Adapter, FullWeights, Gauges, Limits, Sample, SampleRequest, Watch, check
from rlt_teacher_server.engine.pool import Engines, PoolOptions

__all__ = ["PROBE", "QUICK", "FakeEngine", "adapter", "asked", "eventually", "pool", "refusal", "weights"]

PROBE = [1, 2, 3]
LONG_S = 60.0  # a busy machine is no failure
QUICK = PoolOptions(
    check_s=0.01,
    same_s=0.02,
    drain_s=LONG_S,
    swap_wait_s=LONG_S,
    prove_s=LONG_S,
    start_s=LONG_S,
    retry_first_s=0.01,
    retry_last_s=0.05,
)


def weights(revision: str = "base") -> FullWeights:
    return FullWeights(revision, Path("/models") / revision)


def adapter(name: str) -> Adapter:
    return Adapter(name, f"base+{name}", Path("/adapters") / name)


def pool(*engines: FakeEngine, **given: Any) -> Engines:
    """Of engines a, b, …; `given`: options, and what `Engines` takes."""
    own = {name: given.pop(name) for name in ("events", "wanted") if name in given}
    named = dict(zip("abcdefgh", engines, strict=False))
    return Engines(named, weights(), PROBE, options=replace(QUICK, **given), **own)


async def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 what is waited for is anything
            await asyncio.sleep(0.002)


def asked(**given: Any) -> SampleRequest:
    return SampleRequest(**({"prompt_token_ids": [5, 6], "max_tokens": 4, "seed": 0} | given))


class FakeEngine:
    """`seconds` of one sample, in four tokens."""

    def __init__(self, base: FullWeights | None = None, *, seconds: float = 0.0, max_model_len: int = 100) -> None:
        self.base = base or weights()
        self.seconds = seconds
        self.length = max_model_len
        self.up = True
        self.full: FullWeights | None = self.base
        self.loaded: dict[str, Adapter] = {}
        self.inside: dict[asyncio.Future[None], SampleRequest] = {}
        self.asked = Counter[str]()
        self.wrong: list[str] = []
        """What the pool must never do."""
        self.poison: set[int] = set()
        """Seeds that kill it."""
        self.refuses: dict[str, Exception] = {}
        """What `add` and `replace` raise, by name or revision."""
        self.dies_of: set[str] = set()
        """Names and revisions at whose loading it dies."""
        self.hangs: set[str] = set()
        """Calls that do not answer."""
        self.late: set[str] = set()
        """Calls that fail once, though nothing is wrong."""
        self.loading = 0.0
        self.stuck = False
        self.most = 8
        """Samples that run at once, by its gauge."""

    # The process

    def kill(self) -> None:
        self.up = False
        for future in self.inside:
            if not future.done():
                future.set_result(None)

    def start(self) -> None:
        self.up, self.full, self.loaded, self.stuck = True, self.base, {}, False

    def restart(self) -> None:
        self.kill()
        self.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    # What the pool asks for

    async def connect(self) -> None:
        await self._called("connect")

    @property
    def limits(self) -> Limits:
        return Limits(self.length)

    @property
    def version(self) -> str:
        return "fake 1"

    async def sample(self, request: SampleRequest, watch: Watch | None = None) -> Sample:
        await self._called("probe" if request.prompt_token_ids == PROBE else "sample")
        check(request, self.limits)
        if request.adapter is not None and request.adapter not in self.loaded:
            raise Unavailable(f"the model {request.adapter} does not exist", type="engine_down")
        began, held = time.perf_counter(), self._holds(request)
        future = asyncio.get_running_loop().create_future()
        self.inside[future] = request
        try:
            if request.seed in self.poison and request.prompt_token_ids != PROBE:
                self.kill()
            await self._write(future, 0 if request.prompt_token_ids == PROBE else self.seconds, watch)
        finally:
            del self.inside[future]
        if held != self._holds(request):
            self.wrong.append(f"{held} became {self._holds(request)} under a sample")
        return Sample([request.seed] * 4, [-1.0] * 4, held, began, began, time.perf_counter())

    async def alive(self) -> None:
        await self._called("alive")
        if self.stuck:
            raise Unavailable("no token for a long time", type="engine_stuck")

    async def gauges(self) -> Gauges:
        await self._called("gauges")
        return Gauges(min(len(self.inside), self.most), max(0, len(self.inside) - self.most))

    async def holds(self) -> FullWeights | None:
        await self._called("holds")
        return self.full

    async def adapters(self) -> frozenset[str]:
        await self._called("adapters")
        return frozenset(self.loaded)

    async def add(self, adapter: Adapter) -> None:
        await self._called("add")
        await self._load(adapter.name)
        self.loaded[adapter.name] = adapter

    async def remove(self, name: str) -> None:
        await self._called("remove")
        if any(request.adapter == name for request in self.inside.values()):
            self.wrong.append(f"{name} was unloaded under a sample")
        self.loaded.pop(name, None)

    async def replace(self, weights: FullWeights) -> None:
        await self._called("replace")
        self._nobody_inside()
        self.full = None
        await self._load(weights.revision)
        self._nobody_inside()
        self.full = weights

    async def _called(self, call: str) -> None:
        self.asked[call] += 1
        if call in self.hangs:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)
        if not self.up:
            raise self._down()
        if call in self.late:
            self.late.discard(call)
            raise Unavailable("it did not answer in time", type="engine_down")

    async def _load(self, name: str) -> None:
        await asyncio.sleep(self.loading)
        if name in self.dies_of:
            self.kill()
        if not self.up:
            raise self._down()
        if name in self.refuses:
            raise self.refuses[name]

    async def _write(self, future: asyncio.Future[None], seconds: float, watch: Watch | None) -> None:
        for token in range(4):
            done, _ = await asyncio.wait([future], timeout=seconds / 4)
            if done:
                future.result()  # what a test has put there
                raise self._down()
            if watch is not None:
                watch([token])
            while self.stuck and not future.done():  # noqa: ASYNC110 a test sets it
                await asyncio.sleep(0.005)

    def _holds(self, request: SampleRequest) -> str:
        return f"{self.full.revision if self.full else None}/{request.adapter or ''}"

    def _nobody_inside(self) -> None:
        if self.inside:
            self.wrong.append("weights were replaced under a sample")

    @staticmethod
    def _down() -> Unavailable:
        return Unavailable("connection refused", type="engine_down", retry_after=1.0)


def refusal(type: str = "unusable_policy") -> InvalidRequest:
    return InvalidRequest("it does not fit", type=type)
