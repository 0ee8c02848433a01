"""What a worker process works with, and how its work ends early."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.errors import RLTError
from rlt_jobs.builds.flow import Flow
from rlt_jobs.builds.servers import Server, Servers
from rlt_jobs.database import Database
from rlt_jobs.metrics import WorkerMetrics
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_service.metrics import Metrics

__all__ = ["Services", "Stopped", "unwrapped"]


@dataclass(frozen=True)
class Services:
    """Lives as long as the process: what was learnt of the servers outlasts a shard."""

    settings: Settings
    database: Database
    store: Store
    teacher: AsyncTeacherClient
    reward: AsyncRewardClient
    worker: str
    draining: Callable[[], bool] = field(default=lambda: False)
    metrics: WorkerMetrics = field(default_factory=lambda: WorkerMetrics(Metrics()))
    servers: Servers = field(init=False)

    def __post_init__(self) -> None:
        start, most = self.settings.start_in_flight, self.settings.max_in_flight
        teacher = Server("the teacher server", self.teacher, Flow(start, most))
        # scores are cheap beside explanations and must not hold them up
        reward = Server("the reward server", self.reward, Flow(most, 4 * most))
        object.__setattr__(self, "servers", Servers(teacher, reward))


class Stopped(RLTError):
    """The lease ends early and nobody is to blame: paused, cancelled, shutting down, or long enough."""


@asynccontextmanager
async def unwrapped() -> AsyncIterator[None]:
    """The first error of a task group, as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
