"""An engine that is given only what it was told: folders are hashed before and after it reads them.

A trainer may write into a folder while an engine reads it, or long after, before an engine that was started anew reads
it again. Neither may be served under the hash that the folder once had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from rlt_client.errors import InvalidRequest
from rlt_service.revision import ModelNotFound, model_revision
from rlt_teacher_server.engine.base import Adapter, Engine, FullWeights, Gauges, Limits, Sample, SampleRequest, Watch

__all__ = ["CHANGED", "Verified", "unchanged"]

CHANGED: Final = "policy_changed"


class Verified:
    """Args:
    refused: told of an adapter that the engine, or its folder's hash, does not let in, and why.
    """

    def __init__(self, engine: Engine, refused: Callable[[Adapter, str], None]) -> None:
        self._engine = engine
        self._refused = refused

    async def __aenter__(self) -> Self:
        await self._engine.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._engine.__aexit__(*raised)

    async def connect(self) -> None:
        await self._engine.connect()

    @property
    def limits(self) -> Limits:
        return self._engine.limits

    @property
    def version(self) -> str | None:
        return self._engine.version

    async def sample(self, request: SampleRequest, watch: Watch | None = None) -> Sample:
        return await self._engine.sample(request, watch)

    async def alive(self) -> None:
        await self._engine.alive()

    async def gauges(self) -> Gauges:
        return await self._engine.gauges()

    async def holds(self) -> FullWeights | None:
        return await self._engine.holds()

    async def adapters(self) -> frozenset[str]:
        return await self._engine.adapters()

    async def remove(self, name: str) -> None:
        await self._engine.remove(name)

    async def add(self, adapter: Adapter) -> None:
        """As `Engine.add`. Raises `InvalidRequest` (policy_changed) with the adapter not in it."""
        own = adapter.revision.rpartition("+")[2]
        try:
            await unchanged(adapter.folder, own)
            await self._engine.add(adapter)
            await self._still(adapter, own)
        except InvalidRequest as error:
            self._refused(adapter, error.detail or error.title)
            raise

    async def _still(self, adapter: Adapter, own: str) -> None:
        try:
            await unchanged(adapter.folder, own)
        except InvalidRequest:
            await self._engine.remove(adapter.name)
            raise

    async def replace(self, weights: FullWeights) -> None:
        """As `Engine.replace`. Raises `InvalidRequest` (policy_changed)."""
        await unchanged(weights.folder, weights.revision)
        await self._engine.replace(weights)
        await unchanged(weights.folder, weights.revision)


async def unchanged(folder: Path, revision: str) -> None:
    """Raises `InvalidRequest` (policy_changed)."""
    try:
        found = await asyncio.to_thread(model_revision, folder)
    except (ModelNotFound, OSError) as error:
        raise InvalidRequest(f"its folder {folder.name} is gone, or no longer whole", type=CHANGED) from error
    if found != revision:
        raise InvalidRequest(f"{folder.name} is {found} by now, no longer {revision}", type=CHANGED)
