"""Teacher and reward server as one worker process sees them: how much each takes, and whether it is well."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from typing import Final

from rlt_client.aio import ServiceClient
from rlt_client.errors import RLTError
from rlt_client.schemas.builds import BuildKind
from rlt_jobs.builds.flow import Flow

__all__ = ["NEEDS_TEACHER", "Server", "Servers"]

PROBE_SECONDS: Final = (2.0, 4.0)  # between questions to a server that is down, drawn anew so that workers do not meet
NEEDS_TEACHER: Final = frozenset({BuildKind.generate})


class Server:
    """One server. A process that found it down asks it no more than once in a while."""

    def __init__(self, name: str, client: ServiceClient, flow: Flow) -> None:
        self.name = name
        self.flow = flow
        self.down: str | None = None
        """Why nothing is asked of it."""
        self._client = client
        self._probe_at = 0.0
        self._opened_at = flow.now()
        self._unproved = False

    def fell_ill(self, error: Exception) -> None:
        """Ask nothing more of it for now; what waits for it is told `error`."""
        self.down = f"{self.name}: {error}"
        self._unproved = self.flow.accepted_at <= self._opened_at
        self._probe_at = time.monotonic() + random.uniform(*PROBE_SECONDS)  # noqa: S311 no secret
        self.flow.close(error)

    async def well(self) -> bool:
        """Whether work for it may be taken, asking it again if that was last done long enough ago."""
        if self.down is None:
            return True
        if time.monotonic() < self._probe_at:
            return False
        try:
            await self.ask()
        except RLTError as error:
            self.fell_ill(error)
            return False
        return True

    async def ask(self) -> None:
        """Raises whatever the server answers, or does not, when it is not ready."""
        await self._client.ready()
        if self.down is not None:
            self.down = None
            self._opened_at = self.flow.now()
            self.flow.open(careful=self._unproved)  # ready before, too, and took nothing: one request will tell


class Servers:
    def __init__(self, teacher: Server, reward: Server) -> None:
        self.teacher = teacher
        self.reward = reward

    @property
    def all(self) -> tuple[Server, Server]:
        return (self.teacher, self.reward)

    def of(self, kind: BuildKind) -> list[Server]:
        """Whom a build of this kind needs."""
        return [self.reward, self.teacher] if kind in NEEDS_TEACHER else [self.reward]

    async def kinds(self) -> Collection[BuildKind]:
        """The kinds of build that can be worked on now."""
        if not await self.reward.well():
            return ()
        return tuple(BuildKind) if await self.teacher.well() else tuple(set(BuildKind) - NEEDS_TEACHER)

    def hindered(self) -> tuple[Collection[BuildKind], str] | None:
        """The kinds of build that cannot go on now, and why."""
        if self.reward.down is not None:
            return tuple(BuildKind), self.reward.down
        if self.teacher.down is not None:
            return tuple(NEEDS_TEACHER), self.teacher.down
        return None
