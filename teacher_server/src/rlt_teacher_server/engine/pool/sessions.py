"""Sessions hold a policy in the engines; groups of samples run in one of them, and in another one if it dies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from rlt_client.errors import Unavailable
from rlt_teacher_server.engine.base import Sample, SampleRequest, Watch
from rlt_teacher_server.engine.pool import pressure
from rlt_teacher_server.engine.pool.fleet import Fleet
from rlt_teacher_server.engine.pool.held import Held, PolicyReplaced
from rlt_teacher_server.engine.pool.replica import Replica, State
from rlt_teacher_server.errors import Reason, item_error

__all__ = ["Group", "Session", "open_session", "revive"]


class Group:
    """The samples of one question: they go to one engine, which then reads the prompt once."""

    def __init__(self, fleet: Fleet, held: Held) -> None:
        self._fleet = fleet
        self._held = held
        self._replica: Replica | None = None

    async def sample(
        self, request: SampleRequest, watch: Watch | None = None, restarted: Callable[[], None] | None = None
    ) -> Sample:
        """One sample. If its engine dies it is begun anew in another one, after a call of `restarted`.

        Raises:
            ItemError: this request cannot be done; one whose second engine died too gets no third (engine_failed).
            Unavailable: no engine that could do it is up.
        """
        adapter = self._held.adapter
        asked = replace(request, adapter=adapter.name if adapter else None)
        first = self._pick()
        if first is None:
            raise self._fleet.down()
        try:
            return await first.sample(asked, watch)
        except Unavailable:
            second = self._pick(but=first)
            if second is None:
                raise
        if restarted is not None:
            restarted()
        self._fleet.events.sample_restarted(first.name)
        try:
            return await second.sample(asked, watch)
        except Unavailable as error:
            raise item_error(Reason.engine_failed, f"two engines died of it or with it; the last: {error}") from error

    def _pick(self, but: Replica | None = None) -> Replica | None:
        """The engine of this group, as long as it takes questions; then another one."""
        able = [replica for replica in self._fleet.able(self._held) if replica is not but]
        if self._replica not in able:
            self._replica = self._fleet.pick(able) if able else None
        return self._replica


class Session:
    """Holds a policy in the engines: while it is open, they keep it."""

    def __init__(self, fleet: Fleet, held: Held) -> None:
        self._fleet = fleet
        self.held = held

    def group(self) -> Group:
        return Group(self._fleet, self.held)


@asynccontextmanager
async def open_session(fleet: Fleet, held: Held, beside: Session | None) -> AsyncIterator[Session]:
    """As `Engines.session`."""
    await _enter(fleet, held, beside)
    fleet.hold(held)
    try:
        yield Session(fleet, held)
    finally:
        fleet.release(held)


async def _enter(fleet: Fleet, held: Held, beside: Session | None) -> None:
    """Nothing else runs between its end and the moment that the session counts."""
    if _beside(fleet, held, beside):
        return
    if not _settled(fleet, held):
        await _wait(fleet, held)
    if not fleet.wants(held):
        raise PolicyReplaced(f"the engines do not hold {held.weights.revision} for new requests")
    takers = fleet.open_to(held)
    if not takers:
        raise fleet.down()
    pressure.check([replica.queue for replica in takers], fleet.options.max_waiting)


def _beside(fleet: Fleet, held: Held, beside: Session | None) -> bool:
    """Whether these full weights are held already: a change of them waits for the caller, not the caller for it."""
    return beside is not None and fleet.wants(held) and held.weights.revision == beside.held.weights.revision


def _settled(fleet: Fleet, held: Held) -> bool:
    return not fleet.wants(held) or bool(fleet.open_to(held))


async def _wait(fleet: Fleet, held: Held) -> None:
    """For the end of a change of the only engine's weights, or for one more look at engines that are down."""
    if not fleet.swapping:
        await revive(fleet, lambda: fleet.swapping or _settled(fleet, held))
    if not fleet.swapping:
        return
    done = await fleet.bell.until(lambda: not fleet.swapping or _settled(fleet, held), fleet.options.swap_wait_s)
    if not done:
        detail = "the engine is being given other weights"
        raise Unavailable(detail, type="weights_changing", retry_after=5.0)


async def revive(fleet: Fleet, enough: Callable[[], bool]) -> None:
    """Look once more at every engine that is out, and wait for it a moment, or until it is enough."""
    before = {replica: replica.attempts for replica in fleet.replicas if replica.state in (State.down, State.coming)}
    for replica in before:
        replica.wake()
    await fleet.bell.until(
        lambda: enough() or all(replica.attempts > attempts for replica, attempts in before.items()),
        fleet.options.revive_s,
    )
