"""What both services do with an engine: sample, and tell a sample's own failure from an engine that is down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rlt_client.errors import ItemError, Unavailable
from rlt_client.schemas.common import Problem
from rlt_teacher_server.admission import Admission
from rlt_teacher_server.engine.base import Sample, SampleRequest, Watch
from rlt_teacher_server.engine.pool import Engines, Group
from rlt_teacher_server.metrics import TeacherMetrics
from rlt_teacher_server.model import TeacherModel
from rlt_teacher_server.policies.registry import Policies

__all__ = ["Failure", "Sampler", "finished_samples"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no sample. `down` is set where the engine could not be reached."""

    problem: Problem
    down: Unavailable | None = None


@dataclass(frozen=True, slots=True)
class Sampler:
    """What all policies share, the policies, the engines that run them, and who is let in."""

    model: TeacherModel
    policies: Policies
    engines: Engines
    admission: Admission
    metrics: TeacherMetrics

    async def sample(
        self,
        group: Group,
        request: SampleRequest,
        watch: Watch | None = None,
        restarted: Callable[[], None] | None = None,
    ) -> Sample | Failure:
        try:
            return await group.sample(request, watch, restarted)
        except ItemError as error:
            return Failure(error.problem)
        except Unavailable as error:
            return Failure(error.problem(), error)

    async def room(self, prompt: int, budget: int) -> int:
        """`budget` cut to what a prompt of so many tokens leaves of the context; at least 1, which then overflows."""
        limits = await self.engines.limits()
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
