"""One look a second at all leases of a worker process: what became of their builds, and renewal when that is due."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import select, tuple_, update

from rlt_client.errors import Unavailable
from rlt_client.schemas.builds import BuildState
from rlt_jobs.builds import stalls
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.running import Run
from rlt_jobs.builds.services import Services, Stopped
from rlt_jobs.database import unbroken
from rlt_jobs.leases import LeaseLost, until

__all__ = ["Control"]

log = logging.getLogger(__name__)


class Control:
    """Stops runs whose lease is lost, whose build no longer runs, or that last too long."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings
        self._runs: set[Run] = set()
        self._renewed = time.monotonic()
        self._until = time.monotonic() + self._settings.shard_limit_seconds

    @contextmanager
    def over(self, run: Run) -> Iterator[None]:
        self._runs.add(run)
        try:
            yield
        finally:
            self._runs.discard(run)

    async def keep(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._settings.control_seconds)
            for server in self._services.servers.all:
                self._services.metrics.in_flight.labels(server.name).set(server.flow.busy)
            if self._services.draining():
                self._stop_all(Stopped("the worker is shutting down"))
            if time.monotonic() > self._until:
                self._stop_all(Stopped(f"a lease lasts {self._settings.shard_limit_seconds:g} s at most"))
            if not self._runs:
                self._renewed = time.monotonic()  # a lease that is taken now is fresh
                continue
            try:
                await unbroken(self._look())
            except Unavailable as error:
                if time.monotonic() - self._renewed > self._settings.lease_seconds:
                    self._stop_all(LeaseLost(f"not renewed in time: {error}"))
            except Exception:  # a look that fails is taken again; without renewal the leases run out by themselves
                log.exception("cannot look after the leases")

    def _stop_all(self, reason: Exception) -> None:
        for run in self._runs:
            run.stop(reason)

    async def _look(self) -> None:
        runs = {run.lease.token: run for run in self._runs}
        ours = tuple_(Shard.id, Shard.lease_token).in_([(run.lease.shard_id, token) for token, run in runs.items()])
        async with self._services.database.begin() as session:
            if time.monotonic() - self._renewed >= self._settings.heartbeat_seconds:
                lease = {"lease_until": until(self._settings.lease_seconds)}
                await session.execute(update(Shard).where(ours).values(lease))
                self._renewed = time.monotonic()
            query = select(Shard.lease_token, Build.id, Build.state, Build.stalled_at).join(Build).where(ours)
            found = {row.lease_token: row for row in await session.execute(query)}
            for build_id, why in self._starved(runs.values()):
                await stalls.stall_build(session, build_id, why)
        for token, run in runs.items():
            row = found.get(token)
            if row is None:
                run.stop(LeaseLost(f"shard {run.lease.shard_id}"))
            elif row.state is not BuildState.running:
                run.stop(Stopped(f"the build is {row.state}"))
            else:
                run.stalled = run.stalled or row.stalled_at is not None

    def _starved(self, runs: Iterable[Run]) -> Iterator[tuple[int, str]]:
        """Builds whose samples cannot be written, or whose requests have been refused for long, each time."""
        for run in runs:
            if run.hindered is not None and not run.stalled:
                yield run.lease.build_id, run.hindered
                continue
            quiet = time.monotonic() - run.moved_at
            full = [server.name for server in self._services.servers.all if server.flow.refused_within(quiet)]
            if quiet > self._settings.stall_seconds and full and not run.stalled:
                yield run.lease.build_id, f"{full[0]} has been full for {quiet:.0f} s: it refuses whatever is asked"
