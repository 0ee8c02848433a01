"""The policies of a server that starts: what an earlier run of it knew, in engines that hold it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlt_service.paths import AllowedRoots
from rlt_teacher_server.engine.base import Adapter, Engine, FullWeights
from rlt_teacher_server.engine.pool import Engines
from rlt_teacher_server.metrics import TeacherMetrics
from rlt_teacher_server.model import TeacherModel
from rlt_teacher_server.policies.hosting import PolicyHost
from rlt_teacher_server.policies.registry import Policies
from rlt_teacher_server.policies.sources import Sources
from rlt_teacher_server.policies.state import StateFile, recall
from rlt_teacher_server.policies.verified import Verified

__all__ = ["Serving", "serving"]


@dataclass(frozen=True, slots=True)
class Serving:
    engines: Engines
    policies: Policies
    host: PolicyHost


@asynccontextmanager
async def serving(
    engines: Mapping[str, Engine],
    model: TeacherModel,
    probe: list[int],
    *,
    roots: AllowedRoots,
    state: Path | None = None,
    metrics: TeacherMetrics | None = None,
    **options: Any,
) -> AsyncIterator[Serving]:
    """The engines behind one pool, and the policies in them.

    Args:
        engines: not started yet; they hold the model.
        probe: a prompt of the model's.
        roots: folders that policies may come from.
        state: the file that remembers the policies; None: a restart begins with the model alone.
        options: more for `Engines`.

    Raises:
        UnusableState: that file cannot be read or written.
    """
    sources = Sources(roots, model)
    file = StateFile(state) if state else None
    book = await asyncio.to_thread(recall, file.read() if file else None, model, sources)
    if file is not None:
        await file.write(book)  # a file that cannot be written is told now, not at the first change
    hosts: list[PolicyHost] = []

    def refused(adapter: Adapter, reason: str) -> None:
        for host in hosts:
            host.refused(adapter, reason)

    started_with = FullWeights(model.ref.revision, model.folder)
    verified = {name: Verified(engine, refused) for name, engine in engines.items()}
    async with Engines(verified, started_with, probe, wanted=book.active.weights, events=metrics, **options) as pool:
        if metrics is not None:
            metrics.watch_engines(pool.figures)
        policies = Policies(model, pool, metrics, book=book)
        host = PolicyHost(policies, pool, sources, probe, state=file, metrics=metrics)
        hosts.append(host)
        host.begin()
        try:
            yield Serving(pool, policies, host)
        finally:
            await host.aclose()
