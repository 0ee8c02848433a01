"""Holding the lease of a build while it is imported or published."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy import select

from rlt_client.errors import Unavailable
from rlt_client.schemas.builds import BuildState
from rlt_jobs.builds.models import Build
from rlt_jobs.builds.services import Services, Stopped, unwrapped
from rlt_jobs.database import unbroken
from rlt_jobs.leases import LeaseLost, claim_build, release_build, renew_build

__all__ = ["held_build"]

log = logging.getLogger(__name__)


@asynccontextmanager
async def held_build(services: Services, build_id: int, state: BuildState) -> AsyncIterator[UUID | None]:
    """Claim the build if it waits in `state`, and renew the lease while the block runs; None if it cannot be had.

    Losing the lease, the build's being cancelled, or being told to stop, ends the block quietly: whoever is rung next
    goes on from there.
    """
    settings = services.settings
    async with services.database.begin() as session:
        token = await claim_build(session, build_id, state, worker=services.worker, seconds=settings.lease_seconds)
    if token is None:
        yield None
        return
    try:
        async with unwrapped(), asyncio.TaskGroup() as group:
            beating = group.create_task(_beat(services, build_id, token))
            yield token
            beating.cancel()
    except (LeaseLost, Stopped) as error:
        log.warning("build %s: %s", build_id, error)
        async with services.database.begin() as session:
            await release_build(session, build_id, token)


async def _beat(services: Services, build_id: int, token: UUID) -> None:
    settings = services.settings
    renewed = time.monotonic()
    while True:
        await asyncio.sleep(settings.control_seconds)
        if services.draining():
            raise Stopped("the worker is shutting down")
        due = time.monotonic() - renewed >= settings.heartbeat_seconds
        try:
            await unbroken(_look(services, build_id, token, renew=due))
        except Unavailable as error:
            if time.monotonic() - renewed > settings.lease_seconds:
                raise LeaseLost(f"build {build_id}: not renewed in time: {error}") from error
            continue
        if due:
            renewed = time.monotonic()


async def _look(services: Services, build_id: int, token: UUID, *, renew: bool) -> None:
    """Raises `LeaseLost`; a build that is cancelled has no lease any more."""
    async with services.database.begin() as session:
        if renew:
            await renew_build(session, build_id, token, seconds=services.settings.lease_seconds)
        elif await session.scalar(select(Build.lease_token).where(Build.id == build_id)) != token:
            raise LeaseLost(f"build {build_id}")
