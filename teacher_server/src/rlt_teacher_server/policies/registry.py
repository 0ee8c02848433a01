"""The policies, and which of them a request gets: counted while it runs, whatever is published meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from rlt_client.errors import APIError, Conflict, Unavailable
from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import PolicyInfo, PolicyState
from rlt_service.pointers import at
from rlt_teacher_server.engine.base import Adapter, FullWeights
from rlt_teacher_server.engine.pool import Engines, Group, Held, PolicyReplaced, Session
from rlt_teacher_server.metrics import TeacherMetrics
from rlt_teacher_server.model import TeacherModel
from rlt_teacher_server.policies.versions import Book, Stay, Version

__all__ = ["Policies", "Use"]

log = logging.getLogger(__name__)

TURN_S: Final = (
    30.0  # for the active policy to be in the engines: loading an adapter takes seconds, a reload has its own
)
LAST_S: Final = 5.0  # at shutdown, for unloading what just ran out


@dataclass(frozen=True, slots=True)
class Use:
    """A policy while a request uses it: every sample of it comes from these very weights."""

    policy: ModelRef
    session: Session

    def group(self) -> Group:
        """For the samples of one question."""
        return self.session.group()


class Policies:
    """Used from one event loop: whatever does not wait cannot be interrupted, so requests take no lock.

    Args:
        model: what the engines were started with; it is a policy too, under its own name.
        book: what an earlier run of the server knew; the model alone if left out.
    """

    def __init__(
        self, model: TeacherModel, engines: Engines, metrics: TeacherMetrics | None = None, *, book: Book | None = None
    ) -> None:
        self.book = book or Book.of(model)
        self._engines = engines
        self._metrics = metrics
        self._turn = asyncio.Event()
        self._retiring: dict[Stay, Version] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self.weights = self.book.active.weights
        """What the engines hold, or are told to."""
        self.exchange(self.weights)

    # Requests

    @asynccontextmanager
    async def using(self, name: str | None, beside: Use | None = None) -> AsyncIterator[Use]:
        """The policy of one request, held while it runs: by its name, a revision, `name@revision`, or the active one.

        Args:
            beside: another policy that the same request holds already.

        Raises:
            NotFound: policy_not_found.
            Conflict: policy_not_loaded: it is known, but in no engine.
            Overloaded, Unavailable: as `Engines.session`.
        """
        async with AsyncExitStack() as stack:
            use = await self._hold(name, stack, beside)
            if self._metrics is not None:
                self._metrics.policy_requested(use.policy)
            yield use

    async def _hold(self, name: str | None, stack: AsyncExitStack, beside: Use | None) -> Use:
        until = time.monotonic() + TURN_S
        while True:
            turn = self._turn
            version = self.book.active if name is None else self.book.named(name)
            if version.stay is not None:
                try:
                    return await self._enter(version, version.stay, stack, beside)
                except PolicyReplaced:
                    pass
            if self._replaced(name, version):
                continue
            if name is not None or version.detail is not None:
                raise _not_loaded(version)
            await _until(turn, until - time.monotonic(), version)

    def _replaced(self, name: str | None, version: Version) -> bool:
        """Whether a name means another version by now, which is served."""
        newest = self.book.find(name) if name is not None else None
        return newest is not None and newest is not version and newest.stay is not None

    async def _enter(self, version: Version, stay: Stay, stack: AsyncExitStack, beside: Use | None) -> Use:
        """Counted before anything else can run: from here on the version stays in the engines."""
        stay.requests += 1
        async with AsyncExitStack() as entered:
            entered.callback(self._release, stay)
            session = await entered.enter_async_context(self._session(stay.held, beside))
            stack.push_async_exit(entered.pop_all())
        return Use(version.ref, session)

    def _session(self, held: Held, beside: Use | None) -> AbstractAsyncContextManager[Session]:
        return self._engines.session(held, beside=beside.session if beside else None)

    def _release(self, stay: Stay) -> None:
        stay.requests -= 1
        if stay.over and not stay.requests:
            self._gone(stay)

    # Changes. None of these waits: a request sees all of one or nothing

    def fits(self, version: Version) -> bool:
        """Whether the engines hold its full weights."""
        return version.weights.revision == self.weights.revision

    def serve(self, version: Version, held: Held) -> None:
        """The engines hold it now."""
        version.stay = Stay(held, time.time())
        version.detail = None
        version.wanted = version.kind is ModelKind.lora
        self.wake()

    def retire(self, version: Version) -> None:
        """No new request gets it. Its adapter is unloaded when the last request that has it ends."""
        stay, version.stay = version.stay, None
        if stay is None:
            return
        stay.over = True
        self._retiring[stay] = version
        if not stay.requests:
            self._gone(stay)

    def exchange(self, weights: FullWeights) -> None:
        """The engines hold these full weights now, and no adapter on them yet."""
        self.weights = weights
        for version in self.book.versions:
            self.retire(version)
            if version.kind is ModelKind.full and self.fits(version):
                self.serve(version, Held(weights))
        self.wake()

    def activate(self, version: Version, history: list[Version]) -> None:
        self.book.activate(version, history)
        self.wake()

    def moved(self, version: Version) -> None:
        """The same contents lie elsewhere: engines that are started anew read them there."""
        if version.stay is None:
            return
        held = version.stay.held
        if held.adapter is None:
            self.weights = version.weights
            version.stay.held = Held(self.weights)
        else:
            version.stay.held = replace(held, adapter=replace(held.adapter, folder=version.folder))
        self._engines.moved(version.stay.held)

    def restore(self, before: Book) -> None:
        """All as it was."""
        self.book = before
        self.wake()

    def lose(self, adapter: Adapter, reason: str) -> Version | None:
        """The version whose adapter an engine does not take back, which no request gets any more."""
        for version in self.book.versions:
            if version.stay is not None and version.stay.held.adapter == adapter:
                version.lacks(reason)
                self.retire(version)
                self.wake()
                return version
        return None

    def tidy(self) -> None:
        """Unload what has been superseded, and forget what nobody can ask for any more."""
        for version in self.book.versions:
            if version.kind is ModelKind.lora and self.book.superseded(version):
                version.wanted = False
                self.retire(version)
        while needless := self.book.needless():  # what an adapter sat on may be next
            for version in needless:
                self.retire(version)
                self.book.forget(version)

    def missing(self) -> list[Version]:
        """Adapters that belong into the engines and are not there, the active one first."""
        found = [v for v in self.book.versions if v.wanted and v.stay is None and v.detail is None and self.fits(v)]
        return sorted(found, key=lambda version: version is not self.book.active)

    def wake(self) -> None:
        """Requests that wait for the active policy look again."""
        if self._metrics is not None:
            self._metrics.policy_active(self.book.active.ref)
        self._turn.set()
        self._turn = asyncio.Event()

    def _gone(self, stay: Stay) -> None:
        del self._retiring[stay]
        if stay.held.adapter is not None:
            task = asyncio.get_running_loop().create_task(self._unload(stay.held.adapter.name))
            self._unloading.add(task)
            task.add_done_callback(self._unloading.discard)

    async def _unload(self, name: str) -> None:
        try:
            await self._engines.remove(name)
        except APIError as error:  # it takes memory there until the engine is started anew; its name is not used again
            log.warning("an adapter could not be unloaded", extra={"adapter": name, "reason": str(error)})

    async def aclose(self) -> None:
        """What ran out is unloaded from engines that stay."""
        if self._unloading:
            await asyncio.wait(self._unloading, timeout=LAST_S)
        for task in self._unloading:
            task.cancel()

    # For people

    def lacking(self) -> str | None:
        """Why requests that name no policy cannot be served."""
        active = self.book.active
        if active.stay is not None:
            return None
        return f"{active.ref.name} is active: {active.detail or 'it is being loaded'}"

    def infos(self) -> list[PolicyInfo]:
        """Every version, the newest first; then those that are forgotten but still used."""
        known = list(reversed(self.book.versions))
        leaving = [version for version in self._retiring.values() if version not in known]
        return [self.info(version) for version in (*known, *dict.fromkeys(leaving))]

    def info(self, version: Version) -> PolicyInfo:
        stays = [stay for stay, each in self._retiring.items() if each is version]
        state = PolicyState.retiring if stays else PolicyState.known
        if version.stay is not None:
            stays, state = [*stays, version.stay], PolicyState.serving
        adapter = version.stay.held.adapter if version.stay else None
        return PolicyInfo(
            name=version.ref.name,
            revision=version.ref.revision,
            kind=version.kind,
            base=version.base.ref if version.base else None,
            active=version is self.book.active,
            state=state,
            requests=sum(stay.requests for stay in stays),
            served_name=adapter.name if adapter else None,
            loaded_at=version.stay.since if version.stay else None,
            detail=version.detail,
        )


async def _until(turn: asyncio.Event, seconds: float, version: Version) -> None:
    """Raises `Unavailable` (policy_loading)."""
    try:
        async with asyncio.timeout(seconds):
            await turn.wait()
    except TimeoutError as error:
        detail = f"{version.ref.name} is active, and not in the engines yet"
        raise Unavailable(detail, type="policy_loading", retry_after=1.0) from error


def _not_loaded(version: Version) -> Conflict:
    why = version.detail or "it was unloaded, or the engines hold other full weights: activate it"
    ref = version.ref
    return at("/policy", Conflict(f"{ref.name} {ref.revision} is in no engine: {why}", type="policy_not_loaded"))
