"""Several engines that hold the same policies, as one: which of them a question's samples go to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Self

from rlt_client.errors import ItemError, RLTError, Unavailable
from rlt_client.schemas.policies import EngineInfo
from rlt_teacher_server.engine.base import Adapter, Engine, FullWeights, Limits, Sample, SampleRequest, Watch

__all__ = ["Engines", "Group", "Held", "PolicyReplaced", "Session"]

PROOF_S: Final = 30.0  # how long one token proves that an engine works: orchestrators ask every few seconds


class PolicyReplaced(RLTError):
    """The engines hold other full weights by now, or will in a moment. Nothing was sampled."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a policy is to the engines."""

    weights: FullWeights
    adapter: Adapter | None = None


class Group:
    """The samples of one question: they go to one engine, which then reads the prompt once."""

    def __init__(self, engines: Engines, held: Held) -> None:
        self._engines = engines
        self._held = held

    async def sample(
        self, request: SampleRequest, watch: Watch | None = None, restarted: Callable[[], None] | None = None
    ) -> Sample:
        """One sample. If its engine dies it is begun anew in another one, after a call of `restarted`.

        Raises:
            ItemError: this request cannot be done.
            Unavailable: no engine that could do it is up.
        """
        del restarted  # there is one engine
        adapter = self._held.adapter
        asked = replace(request, adapter=adapter.name if adapter else None)
        return await self._engines.first.sample(asked, watch)


class Session:
    """Holds a policy in the engines: while it is open, they keep it."""

    def __init__(self, engines: Engines, held: Held) -> None:
        self._engines = engines
        self._held = held

    def group(self) -> Group:
        return Group(self._engines, self._held)


class Engines:
    """Args:
    engines: by the names that people read.
    weights: the full weights that they were started with.
    probe: a prompt of the model's.
    """

    def __init__(self, engines: Mapping[str, Engine], weights: FullWeights, probe: list[int]) -> None:
        self._probe = probe
        self._proved = float("-inf")
        self._sessions = 0
        self._engines = dict(engines)
        self._weights = weights
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for engine in self._engines.values():
            await self._stack.enter_async_context(engine)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def first(self) -> Engine:
        return next(iter(self._engines.values()))

    async def limits(self) -> Limits:
        """Of the smallest. Raises `Unavailable` while none of them has ever been up."""
        await self.first.connect()
        return self.first.limits

    async def ready(self) -> None:
        """Raises `Unavailable` unless one of them gives tokens."""
        await self.first.alive()
        if time.monotonic() - self._proved < PROOF_S or self._sessions:
            return
        try:
            await self.first.sample(SampleRequest(self._probe, max_tokens=1, seed=0))
        except ItemError as error:
            raise Unavailable(str(error)) from error
        self._proved = time.monotonic()

    @asynccontextmanager
    async def session(self, held: Held) -> AsyncIterator[Session]:
        """Hold a policy. Waits while full weights are put in the place of others in the only engine.

        Raises:
            PolicyReplaced: of the engines that are up none holds these full weights.
            Overloaded: their queues are full.
            Unavailable: none of them is up.
        """
        self._sessions += 1
        try:
            yield Session(self, held)
        finally:
            self._sessions -= 1

    async def add(self, adapter: Adapter) -> None:
        """Load an adapter into every engine that is up, and into the others when they are.

        Raises what `Engine.add` raises, with the adapter in no engine.
        """
        await self.first.add(adapter)

    async def remove(self, name: str) -> None:
        """Unload an adapter that no session holds."""
        await self.first.remove(name)

    async def replace(self, weights: FullWeights, switch: Callable[[], None]) -> None:
        """Put other full weights into every engine, one engine after the other, each when its sessions have ended.

        Args:
            switch: called once, as soon as an engine can serve the new weights.

        Raises:
            Conflict: policy_busy: sessions did not end in time; nothing was changed.
            and what `Engine.replace` raises, with the old weights in all engines again.
        """
        await self.first.replace(weights)
        switch()

    async def infos(self) -> list[EngineInfo]:
        """What is known of each of them."""
        return [EngineInfo(name=name, up=True, samples=0) for name in self._engines]
