"""What a lease has to do: samples that are missing are made. `Rescoring` is the other kind of task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from rlt_jobs.builds import repository
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.models import Problem
from rlt_jobs.builds.outcomes import Outcome
from rlt_jobs.builds.sampler import Made, Sampler
from rlt_jobs.leases import Claimed

__all__ = ["Making", "Task"]


class Task(Protocol):
    """The samples of one lease: which, how each is made, and how what was made is written."""

    async def todo(self, session: AsyncSession) -> list[tuple[int, int]]:
        """(problem, sample_idx) that come next; empty once all were asked for. What came before is written.

        May be called again with nothing made in between, where the transaction did not end well: then it says the same.
        """

    async def make(self, sampler: Sampler, problem: int, sample_idx: int) -> Made:
        """Raises `Unhealthy` and `Misconfigured`."""

    async def write(
        self, session: AsyncSession, outcomes: Sequence[Outcome], *, scorer_id: int | None, seconds: float
    ) -> int:
        """Write what was made in the last `seconds`. Returns how many rows changed. Raises `LeaseLost`."""

    async def end(self, session: AsyncSession) -> None:
        """Before the shard is done."""


class Making:
    def __init__(self, lease: Claimed) -> None:
        self._lease = lease
        self._problems: dict[int, Problem] = {}
        self._asked = False

    async def todo(self, session: AsyncSession) -> list[tuple[int, int]]:
        if self._asked:
            return []
        missing = await repository.missing(session, self._lease)
        wanted = (problem for problem, _ in missing)
        self._problems = await repository.problems(session, self._lease.build_id, wanted)
        return missing

    async def make(self, sampler: Sampler, problem: int, sample_idx: int) -> Made:
        self._asked = True
        return await sampler.make(self._problems[problem], sample_idx, self._lease.try_)

    async def write(
        self, session: AsyncSession, outcomes: Sequence[Outcome], *, scorer_id: int | None, seconds: float
    ) -> int:
        changed = await flush(session, self._lease, outcomes, scorer_id=scorer_id, seconds=seconds)
        engines = {outcome.engine for outcome in outcomes if outcome.engine is not None}
        await repository.add_engines(session, self._lease.build_id, engines)
        return changed

    async def end(self, session: AsyncSession) -> None:
        """Nothing is left to do."""
