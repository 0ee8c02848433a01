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
from rlt_jobs.leases import ClaimedBuild, LeaseLost, claim_build, release_build, renew_build
from rlt_service import telemetry
from rlt_service.logs import bound

__all__ = ["held_build"]

log = logging.getLogger(__name__)

_SPANS = {BuildState.importing: "import", BuildState.finishing: "publish"}


@asynccontextmanager
async def held_build(services: Services, build_id: int, state: BuildState) -> AsyncIterator[UUID | None]:
    """Claim the build if it waits in `state`, and renew the lease while the block runs; None if it cannot be had.

    Losing the lease, the build's being cancelled, or being told to stop, ends the block quietly: whoever is rung next
    goes on from there.
    """
    settings = services.settings
    async with services.database.begin() as session:
        claimed = await claim_build(session, build_id, state, worker=services.worker, seconds=settings.lease_seconds)
    if claimed is None:
        yield None
        return
    try:
        async with _told_apart(build_id, state, claimed), unwrapped(), asyncio.TaskGroup() as group:
            beating = group.create_task(_beat(services, build_id, claimed.token))
            yield claimed.token
            beating.cancel()
    except (LeaseLost, Stopped) as error:
        log.warning("build given back: %s", error, extra={"build_id": build_id, "owner": claimed.owner})
        async with services.database.begin() as session:
            await release_build(session, build_id, claimed.token)


@asynccontextmanager
async def _told_apart(build_id: int, state: BuildState, claimed: ClaimedBuild) -> AsyncIterator[None]:
    """Log lines and a span that say which build this is."""
    ids: dict[str, str | int] = {"build_id": build_id, "owner": claimed.owner}
    with bound(**ids), telemetry.span(_SPANS[state], parent=claimed.traceparent, **ids):
        yield


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
