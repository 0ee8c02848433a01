"""Puts versions into the engines, and tells the registry at the moment that they are there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from rlt_client.errors import APIError, InvalidRequest, ItemError, Overloaded, Unavailable
from rlt_client.schemas.models import ModelKind
from rlt_teacher_server.engine.base import Adapter, SampleRequest
from rlt_teacher_server.engine.pool import Engines, Held, PolicyReplaced
from rlt_teacher_server.policies.registry import Policies
from rlt_teacher_server.policies.versions import Book, Version, served_name

__all__ = ["Placement"]

log = logging.getLogger(__name__)


class Placement:
    """One call at a time.

    Args:
        probe: a prompt of the model's, which an adapter has to continue before a request gets it.
    """

    def __init__(self, policies: Policies, engines: Engines, probe: list[int]) -> None:
        self._policies = policies
        self._engines = engines
        self._probe = SampleRequest(probe, max_tokens=1, seed=0)

    async def place(self, version: Version, arrived: Callable[[], None]) -> None:
        """Have it in the engines, and call `arrived` at that moment: no request runs in between.

        Raises:
            InvalidRequest: the engines do not take it.
            Conflict: policy_busy.
            Unavailable: no engine is up.
        """
        if not self._policies.fits(version):
            await self._exchange(version, arrived)
            await self.bring_back()
            return
        if version.stay is None:
            await self._enter(version)
        arrived()

    async def bring_back(self) -> bool:
        """Load the adapters that belong on the weights in the engines. False where engines are down: try again."""
        for version in self._policies.missing():
            try:
                await self._enter(version)
            except (Unavailable, Overloaded):
                return False
            except APIError as error:
                self._lose(version, error.detail or error.title)
        return True

    async def _enter(self, version: Version) -> None:
        """Raises what `place` does, with the version in no engine."""
        held = Held(self._policies.weights)
        if version.kind is ModelKind.lora:
            held = replace(held, adapter=(adapter := self._adapter(version)))
            await self._add(held, adapter)
        self._policies.serve(version, held)

    def _adapter(self, version: Version) -> Adapter:
        name, version.served_before = version.served_before or served_name(version.ref), None
        return Adapter(name, version.ref.revision, version.folder)

    async def _add(self, held: Held, adapter: Adapter) -> None:
        await self._engines.add(adapter)
        try:
            await self._prove(held)
        except BaseException:
            with suppress(APIError):
                await self._engines.remove(adapter.name)
            raise

    async def _prove(self, held: Held) -> None:
        """One token of it: files can be whole and their numbers not finite."""
        try:
            async with self._engines.session(held) as session:
                await session.group().sample(self._probe)
        except Overloaded:  # queues are full: engines that read it without complaint have to do
            log.warning(
                "an adapter was not tried: queues are full", extra={"adapter": held.adapter and held.adapter.name}
            )
        except ItemError as error:
            detail = f"it gives no tokens: {error}"
            raise InvalidRequest(detail, type="unusable_policy") from error
        except PolicyReplaced as error:  # engines went down in this moment
            raise Unavailable(str(error), type="engine_down", retry_after=1.0) from error

    async def _exchange(self, version: Version, arrived: Callable[[], None]) -> None:
        """Other full weights, and then the adapter on them. If that fails, everything is put back."""
        policies, weights = self._policies, version.weights
        before = policies.book.copy()

        def switch() -> None:
            arrived()
            policies.exchange(weights)

        try:
            await self._engines.replace(weights, switch)
            if version.stay is None:
                await self._enter(version)
        except BaseException as error:
            if policies.weights is weights:
                await self._go_back(before, version, error)
            raise

    async def _go_back(self, before: Book, version: Version, error: BaseException) -> None:
        policies = self._policies

        def switch() -> None:
            policies.exchange(before.active.weights)
            policies.restore(before)

        if isinstance(error, asyncio.CancelledError):  # the server stops: there is no time to load weights
            return
        try:
            await self._engines.replace(before.active.weights, switch)
            await self.bring_back()
        except APIError as second:
            policies.activate(version.full, [before.active, *before.history])
            log.error("the policy from before could not be put back", extra={"reason": str(second)})

    def _lose(self, version: Version, reason: str) -> None:
        version.lacks(reason)
        facts = {"policy": version.ref.name, "revision": version.ref.revision, "reason": reason}
        log.warning("a policy cannot be loaded", extra=facts)
        book = self._policies.book
        if version is book.active:
            self._policies.activate(version.full, [version, *book.history])
            log.error("the active policy cannot be restored: its base takes its place", extra=facts)
