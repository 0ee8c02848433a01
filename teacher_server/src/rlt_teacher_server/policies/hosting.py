"""Publishes, activates and takes back policies while requests go on: one change after the other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from rlt_client.errors import APIError, Conflict, InternalError, InvalidRequest, RLTError
from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import EngineInfo, LoadPolicy
from rlt_service.pointers import at
from rlt_teacher_server.concurrency import Unattended
from rlt_teacher_server.engine.base import Adapter
from rlt_teacher_server.engine.pool import Engines
from rlt_teacher_server.metrics import TeacherMetrics
from rlt_teacher_server.policies.placing import Placement
from rlt_teacher_server.policies.registry import Policies
from rlt_teacher_server.policies.sources import Sources
from rlt_teacher_server.policies.state import StateFile, UnusableState
from rlt_teacher_server.policies.verified import CHANGED, unchanged
from rlt_teacher_server.policies.versions import Book, Version

__all__ = ["Loaded", "PolicyHost"]

log = logging.getLogger(__name__)

T = TypeVar("T")
AGAIN_S: Final = 1.0  # between two attempts to load what belongs into engines that are down


@dataclass(frozen=True, slots=True)
class Loaded:
    version: Version
    loaded: bool
    """False: it was there already."""
    seconds: float


class PolicyHost:
    """Args:
    probe: a prompt of the model's.
    state: where changes are remembered; nowhere if None.
    """

    def __init__(
        self,
        policies: Policies,
        engines: Engines,
        sources: Sources,
        probe: list[int],
        *,
        state: StateFile | None = None,
        metrics: TeacherMetrics | None = None,
    ) -> None:
        self.policies = policies
        self._engines = engines
        self._sources = sources
        self._placement = Placement(policies, engines, probe)
        self._state = state
        self._metrics = metrics
        self._one_at_a_time = asyncio.Lock()
        self._unattended = Unattended()

    @property
    def book(self) -> Book:
        return self.policies.book

    async def engines(self) -> list[EngineInfo]:
        return await self._engines.infos()

    async def load(self, request: LoadPolicy) -> Loaded:
        """Make a version known and load it. Requests that began keep theirs; a failure changes nothing.

        Raises:
            InvalidRequest: unusable_policy, path_not_allowed, adapters_unavailable, weights_unavailable.
            Conflict: revision_mismatch, policy_busy.
            Unavailable: no engine is up.
        """
        return await self._change("load", lambda: self._load(request))

    async def activate(self, name: str, revision: str | None = None) -> Version:
        """Requests that name no policy get it from now on.

        Raises:
            NotFound: policy_not_found.
            Conflict: revision_mismatch: its folder has other contents by now; policy_busy.
            InvalidRequest: the engines do not take it.
            Unavailable: no engine is up.
        """

        async def work() -> Version:
            version = self.book.get(name, revision)
            if version is not self.book.active:
                await self._activate(version, [self.book.active, *self.book.history])
            elif version.stay is None:
                await self._activate(version, self.book.history)
            return version

        return await self._change("activate", work)

    async def rollback(self, expected: str | None = None) -> Version:
        """What was active before is active again.

        Raises:
            Conflict: nothing_to_roll_back; revision_mismatch: another one than `expected` is active, or the folder of
                what was active before has other contents by now; policy_busy.
            InvalidRequest: the engines do not take it.
            Unavailable: no engine is up.
        """

        async def work() -> Version:
            active = self.book.active.ref.revision
            if expected not in (None, active):
                raise at(
                    "/expected_revision", Conflict(f"{active} is active, not {expected}", type="revision_mismatch")
                )
            version, *history = self.book.before()
            await self._activate(version, history)
            return version

        return await self._change("rollback", work)

    async def unload(self, name: str, revision: str | None = None) -> Version:
        """Take an adapter out of the engines when its last request has ended; it stays known.

        Raises:
            NotFound: policy_not_found.
            Conflict: policy_is_active; policy_is_base: engines always hold full weights.
        """

        async def work() -> Version:
            version = self.book.get(name, revision)
            self.book.check_idle(version)
            if version.kind is ModelKind.full and version.stay is not None:
                raise Conflict("the engines hold these full weights until others are activated", type="policy_is_base")
            version.wanted = False
            self.policies.retire(version)
            return version

        return await self._change("unload", work)

    async def delete(self, name: str, revision: str | None = None) -> None:
        """Forget one version, or all of a name. Its files stay.

        Raises:
            NotFound: policy_not_found.
            Conflict: policy_is_active; policy_is_base: adapters sit on it, or the server was started with it.
        """

        async def work() -> None:
            one = self.book.get(name, revision)
            versions = self.book.of_name(name) if revision is None else [one]
            self.book.check_deletable(versions)
            for version in versions:
                self.policies.retire(version)
                self.book.forget(version)

        await self._change("delete", work)

    def refused(self, adapter: Adapter, reason: str) -> None:
        """An engine that was started anew does not take an adapter back: nobody gets it any more."""
        version = self.policies.lose(adapter, reason)
        if version is not None:
            log.error("a policy was lost", extra={**_facts(version.ref), "reason": reason})

    def begin(self) -> None:
        """Load what belongs into the engines, as soon as they are up."""
        self._unattended.begin(self._restore(), "policies: restore")

    async def aclose(self) -> None:
        """Changes that have not ended are broken off; what is on the disk is the state before them."""
        await self._unattended.stop()
        await self.policies.aclose()

    # Changes

    async def _load(self, request: LoadPolicy) -> Loaded:
        began = time.perf_counter()
        try:
            version, known = await self._find(request)
            lora, activate = request.kind is ModelKind.lora, request.activate and version is not self.book.active
            loaded = version.stay is None and (lora or activate or not known)
            if activate:
                await self._activate(version, [self.book.active, *self.book.history], newest=True)
            elif lora:
                await self._placement.place(version, lambda: self.book.put(version))
            else:
                self.book.put(version)
        except (RLTError, OSError) as error:
            raise self._refusal(error) from error
        return Loaded(version, loaded, time.perf_counter() - began)

    async def _find(self, request: LoadPolicy) -> tuple[Version, bool]:
        """The version that the folder has, and whether it is known."""
        folder, content = await asyncio.to_thread(self._read, request)
        base = self.book.in_engines(self.policies.weights) if request.kind is ModelKind.lora else None
        revision = f"{base.ref.revision}+{content}" if base else content
        if request.expected_revision not in (None, revision, content):
            detail = f"the source is {revision}, not {request.expected_revision}"
            raise at("/expected_revision", Conflict(detail, type="revision_mismatch"))
        known = self.book.find(request.name, revision)
        if known is None:
            return Version(ModelRef(name=request.name, revision=revision), request.kind, folder, base), False
        if known is not self.book.base:
            known.folder, known.detail = folder, None
            self.policies.moved(known)
        return known, True

    def _read(self, request: LoadPolicy) -> tuple[Path, str]:
        folder = self._sources.folder(request.source, request.kind)
        return folder, self._sources.check(folder, request.kind)

    async def _activate(self, version: Version, history: list[Version], *, newest: bool = False) -> None:
        def arrived() -> None:
            if newest:
                self.book.put(version)
            self.policies.activate(version, history)

        try:
            if version.stay is None:
                await self._as_it_was(version)
            if not self.policies.fits(version):
                await self._as_it_was(version.full)
            await self._placement.place(version, arrived)
        except InvalidRequest as error:
            raise _changed(error) from error

    async def _as_it_was(self, version: Version) -> None:
        if version is not self.book.base:
            self._sources.inside(version.folder)
        await unchanged(version.folder, version.content)

    def _refusal(self, error: RLTError | OSError) -> RLTError:
        """What the caller is told: refusals as they are, all else as a policy that cannot be used."""
        if isinstance(error, InvalidRequest):
            error = _changed(error)
        if isinstance(error, Conflict | InvalidRequest) and not error.errors:
            return at("/source", error)
        if isinstance(error, APIError):
            return error
        return at("/source", InvalidRequest(self._sources.said(error), type="unusable_policy"))

    # One change

    async def _change(self, kind: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Goes on when the caller has gone: half of a change would be a state of its own."""
        return await self._unattended.finish(self._alone(kind, work), f"policies: {kind}")

    async def _alone(self, kind: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with self._one_at_a_time:
            try:
                result = await work()
            except Exception:
                self.policies.tidy()
                with suppress(InternalError):  # there is nothing to remember, unless putting all back failed too
                    await self._save()
                raise
            self.policies.tidy()
            await self._save()
        if self._metrics is not None:
            self._metrics.policy_changed(kind)
        if self.policies.missing():
            self.begin()
        active = self.book.active.ref
        log.info("policies changed", extra={"change": kind, **_facts(active)})
        return result

    async def _restore(self) -> None:
        while self.policies.missing():
            async with self._one_at_a_time:
                done = await self._placement.bring_back()
                await self._save()
            if not done:
                await asyncio.sleep(AGAIN_S)

    async def _save(self) -> None:
        if self._state is None:
            return
        try:
            await self._state.write(self.book)
        except UnusableState as error:
            detail = f"the change is in effect, but a restart would not know of it: {error}"
            raise InternalError(detail, type="state_not_saved") from error


def _changed(error: InvalidRequest) -> APIError:
    """What somebody wrote into meanwhile is the state of the thing, not of the request."""
    return Conflict(error.detail, type="revision_mismatch") if error.type == CHANGED else error


def _facts(ref: ModelRef) -> dict[str, str]:
    return {"policy": ref.name, "revision": ref.revision}
