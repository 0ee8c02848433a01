"""What both services do with an engine: sample, and tell a sample's own failure from an engine that is down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rlt_client.errors import ItemError, Unavailable
from rlt_client.schemas.common import Problem
from rlt_teacher_server.admission import Admission
from rlt_teacher_server.engine.base import Engine, Sample, SampleRequest
from rlt_teacher_server.metrics import TeacherMetrics
from rlt_teacher_server.policy import Policy

__all__ = ["Failure", "Sampler", "finished_samples"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no sample. `down` is set where the engine could not be reached."""

    problem: Problem
    down: Unavailable | None = None


@dataclass(frozen=True, slots=True)
class Sampler:
    """A policy, the engine that runs it, and who is let in."""

    policy: Policy
    engine: Engine
    admission: Admission
    metrics: TeacherMetrics

    async def sample(self, request: SampleRequest) -> Sample | Failure:
        try:
            return await self.engine.sample(request)
        except ItemError as error:
            return Failure(error.problem)
        except Unavailable as error:
            return Failure(error.problem(), error)

    async def room(self, prompt: int, budget: int) -> int:
        """`budget` cut to what a prompt of so many tokens leaves of the context; at least 1, which then overflows."""
        limits = await self.engine.limits()
        return max(1, min(budget, limits.max_model_len - prompt))


def finished_samples(results: Iterable[Sample | Failure]) -> list[Sample]:
    """The samples among the results of one request.

    Raises:
        Unavailable: there are none, and the engine was down for at least one: worth asking again.
    """
    results = list(results)
    samples = [result for result in results if isinstance(result, Sample)]
    down = next((result.down for result in results if isinstance(result, Failure) and result.down), None)
    if down is not None and not samples:
        raise down
    return samples
