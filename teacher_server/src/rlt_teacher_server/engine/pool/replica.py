"""One engine of the pool: where it stands, what it holds, and the samples in it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import replace
from enum import Enum
from typing import Final

from rlt_client.errors import APIError, InvalidRequest, ItemError, Unavailable
from rlt_client.schemas.policies import EngineInfo
from rlt_teacher_server.engine.base import Engine, FullWeights, Limits, Sample, SampleRequest, Watch
from rlt_teacher_server.engine.pool.bell import Bell
from rlt_teacher_server.engine.pool.held import Held, Target
from rlt_teacher_server.engine.pool.options import Events
from rlt_teacher_server.engine.pool.pressure import Queue

__all__ = ["DOWN", "FAILURES", "Replica", "State"]


class State(Enum):
    down = "down"
    coming = "it is being looked at"
    up = "up"
    leaving = "it takes no new requests: it gets other weights when those inside have ended"
    changing = "it is being given other weights"


log = logging.getLogger(__name__)

DOWN: Final = "engine_down"
FAILURES: Final = (APIError, ItemError, TimeoutError)
"""What an engine may raise that is its own doing."""
SERVING: Final = (State.up, State.leaving)


class Replica:
    """Args:
    bell: rung when it matters to others how it stands.
    """

    def __init__(self, name: str, engine: Engine, bell: Bell, events: Events) -> None:
        self.name = name
        self.engine = engine
        self.state = State.down
        self.detail: str | None = "it was not reached yet"
        self.trouble = DOWN
        """The stable name of why it is not up."""
        self.limits: Limits | None = None
        self.weights: FullWeights | None = None
        self.adapters: frozenset[str] = frozenset()
        self.added: set[str] = set()
        """Adapters that were ever asked for here: not those that somebody else loaded."""
        self.seen: FullWeights | None = None
        """What the engine itself said that it holds, when it came up."""
        self.spoilt = False
        """A change of its weights failed: whatever it says, it must be given them anew."""
        self.refuses = False
        """It went out because it does not take what it is to hold."""
        self.samples = 0
        self.finished = 0
        self.proved = -math.inf
        """When it last gave tokens, `time.monotonic`."""
        self.picked = 0
        self.attempts = 0
        """To bring it up, successful or not."""
        self.life = 0
        """Grows whenever it goes out or comes in: what began in an earlier life says nothing of this one."""
        self.queue = Queue(engine, lambda: self.samples)
        self.lock = asyncio.Lock()
        """Held while something is loaded or unloaded."""
        self._woken = asyncio.Event()
        self._inside: set[asyncio.Timeout] = set()
        self._bell = bell
        self._events = events

    @property
    def serving(self) -> bool:
        """Whether samples may run in it."""
        return self.state in SERVING

    def serves(self, held: Held) -> bool:
        adapter = held.adapter
        return self.has(held.weights) and (adapter is None or adapter.name in self.adapters)

    def has(self, weights: FullWeights) -> bool:
        """Whether it can sample from these."""
        return self.serving and self.weights is not None and self.weights.revision == weights.revision

    async def sample(self, request: SampleRequest, watch: Watch | None = None) -> Sample:
        """Raises `Unavailable` after having taken it out, or where it was taken out by others; and `ItemError`."""
        life = self.life
        self.samples += 1
        try:
            sample = await self._interruptibly(request, watch)
        except Unavailable as error:
            self.fail(error, life)
            raise
        finally:
            self.samples -= 1
            if not self.samples and self.state is not State.up:
                self._bell.ring()
        self.finished += 1
        self.proved = time.monotonic()
        return replace(sample, engine=self.engine.version)

    async def _interruptibly(self, request: SampleRequest, watch: Watch | None) -> Sample:
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._inside.add(scope)
                return await self.engine.sample(request, watch)
        except TimeoutError:
            if not scope.expired():
                raise
            raise self.unavailable() from None
        finally:
            self._inside.discard(scope)

    def break_off(self) -> None:
        """End the samples inside, as `Unavailable`."""
        now = asyncio.get_running_loop().time()
        for scope in self._inside:
            scope.reschedule(now)
        self._inside.clear()

    def unavailable(self) -> Unavailable:
        return Unavailable(f"{self.name}: {self.detail}", type=self.trouble, retry_after=1.0)

    def fail(self, error: Exception, life: int) -> bool:
        """Out of service, unless that is old news. Whether it is none."""
        if not self.serving or life != self.life:
            return False
        self.out(error)
        self.wake()
        log.warning("an engine is out", extra={"engine": self.name, "detail": self.detail})
        self._events.engine_failed(self.name)
        return True

    def out(self, why: Exception | str) -> None:
        self.life += 1
        self.trouble = why.type if isinstance(why, Unavailable) else DOWN
        self.detail = why if isinstance(why, str) else _words(why)
        self.refuses = isinstance(why, InvalidRequest)
        self.queue.forget()
        self.to(State.down)

    def enter(self, target: Target) -> None:
        """In service, holding what is wanted."""
        self.life += 1
        self.detail = None
        self.spoilt = False
        self.weights, self.adapters = target.weights, frozenset(target.adapters)
        self.to(State.up)

    def to(self, state: State) -> None:
        self.state = state
        self._bell.ring()

    def wake(self) -> None:
        """Its monitor is to look at it now."""
        self._woken.set()

    async def nap(self, seconds: float) -> None:
        """Its monitor waits for the next look."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    def info(self) -> EngineInfo:
        gauges = self.queue.gauges
        return EngineInfo(
            name=self.name,
            up=self.serving,
            detail=self.detail if self.state in (State.down, State.up) else self.detail or self.state.value,
            version=self.engine.version if self.limits else None,
            weights=self.weights.revision if self.weights else None,
            samples=self.samples,
            running=gauges.running if gauges else None,
            waiting=gauges.waiting if gauges else None,
        )


def _words(error: Exception) -> str:
    """What people read of it."""
    if isinstance(error, APIError):
        return error.detail or error.title
    if isinstance(error, ItemError):
        return error.problem.detail or error.problem.title
    return "it takes too long" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
