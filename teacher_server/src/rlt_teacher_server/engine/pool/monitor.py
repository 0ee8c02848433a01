"""Watches one engine: takes it out when it no longer works, and brings it back."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final, NoReturn

from rlt_client.errors import Unavailable
from rlt_teacher_server.engine.pool.fleet import Fleet
from rlt_teacher_server.engine.pool.reconciling import Reconciler
from rlt_teacher_server.engine.pool.replica import FAILURES, Replica, State

__all__ = ["Monitor"]

log = logging.getLogger(__name__)

TRIES: Final = 2  # before samples are ended that may still be under way
SHORTEST_S: Final = 0.05  # between two attempts, however many requests ask for one


class Monitor:
    def __init__(self, replica: Replica, fleet: Fleet, reconciler: Reconciler) -> None:
        self._replica = replica
        self._fleet = fleet
        self._reconciler = reconciler
        self._delay = fleet.options.retry_first_s
        self._compared = 0.0
        self._failed = 0
        """Attempts to bring it up, in a row."""
        self._doubts = 0
        """Times, in a row, that it was found not to get on."""

    async def run(self) -> NoReturn:
        while True:
            try:
                await self._step()
            except Exception:  # a fault of ours: one engine more or less must not depend on it
                log.exception("the monitor of an engine failed", extra={"engine": self._replica.name})
                self._replica.out("its monitor failed")
                await asyncio.sleep(self._fleet.options.retry_last_s)

    async def _step(self) -> None:
        replica, fleet = self._replica, self._fleet
        if replica.state is State.changing:
            await replica.nap(fleet.options.check_s)
        elif not replica.serving:
            await self._bring_up()
        elif fleet.stale(replica):
            await self._empty()
        else:
            await replica.nap(fleet.options.check_s)
            await self._look()

    # Out

    async def _bring_up(self) -> None:
        replica, options = self._replica, self._fleet.options
        error = await self._attempt()
        if error is None:
            self._delay = options.retry_first_s
            log.info("an engine is up", extra={"engine": replica.name})
            return
        await asyncio.sleep(SHORTEST_S)
        await replica.nap(self._delay)
        self._delay = min(2 * self._delay, options.retry_last_s)

    async def _attempt(self) -> Exception | None:
        replica, known = self._replica, self._replica.detail
        replica.to(State.coming)
        failure = None
        try:
            await self._reconciler.bring_up(replica)
            self._compared, self._failed, self._doubts = time.monotonic(), 0, 0
        except FAILURES as error:
            failure = error
            replica.out(error)
            self._give_up()
            if replica.detail != known:
                log.warning("an engine is down", extra={"engine": replica.name, "detail": replica.detail})
        finally:
            replica.attempts += 1
            self._fleet.bell.ring()
        return failure

    def _give_up(self) -> None:
        """What still runs in it dies by itself where the process has died. Where it only seemed so, because a look came
        too late among thousands of requests, these go on."""
        self._failed += 1
        if self._failed >= TRIES:
            self._replica.break_off()

    # Up, with weights that are not wanted any more

    async def _empty(self) -> None:
        """Until nobody needs it for what it holds. The last one that holds it serves on meanwhile."""
        replica, fleet = self._replica, self._fleet
        if replica.state is State.up and fleet.another(replica):
            replica.to(State.leaving)
        await fleet.bell.until(self._to_be_left, fleet.options.check_s)
        if fleet.stale(replica) and fleet.free(replica):
            replica.out("it is being given other weights")
        else:
            await self._look()

    def _to_be_left(self) -> bool:
        return not self._fleet.stale(self._replica) or self._fleet.free(self._replica)

    # Up

    async def _look(self) -> None:
        replica, life = self._replica, self._replica.life
        if not replica.serving:
            return
        try:
            await self._check()
        except FAILURES as error:
            if replica.fail(error, life):
                replica.break_off()

    async def _check(self) -> None:
        """A busy engine is believed as long as it gets on, whatever else it does not answer in time."""
        replica, options = self._replica, self._fleet.options
        if replica.samples:
            await self._gets_on()
        if replica.samples or replica.queue.wanted:
            await replica.queue.read(replica.finished)
        if time.monotonic() - self._compared >= options.same_s:
            await self._compare()
        if replica.serving and not replica.samples and time.monotonic() - replica.proved >= options.proof_s:
            await self._reconciler.prove(replica)

    async def _gets_on(self) -> None:
        try:
            async with asyncio.timeout(self._fleet.options.prove_s):
                await self._replica.engine.alive()
            self._doubts = 0
        except FAILURES:
            self._doubts += 1
            if self._doubts >= TRIES:
                raise

    async def _compare(self) -> None:
        """Raises `Unavailable` where it was started anew, or changed by others."""
        replica = self._replica
        life = replica.life
        self._compared = time.monotonic()
        try:
            async with asyncio.timeout(self._fleet.options.prove_s):
                same = await self._reconciler.same(replica)
        except FAILURES:
            if replica.samples:
                return
            raise
        if not same and life == replica.life:
            raise Unavailable("it no longer holds what it was given", type="engine_down", retry_after=1.0)
