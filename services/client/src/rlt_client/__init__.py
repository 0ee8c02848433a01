"""Client, wire types and prompt formats of the RLT Platform (arXiv 2506.08388). Needs httpx and pydantic only.

Clients: `RewardClient`, `TeacherClient`, `JobsClient` and their asynchronous twins in `rlt_client.aio` and `.jobs`.
Wire types: `rlt_client.schemas`. Prompt formats: `rlt_client.formats`. Errors: `rlt_client.errors`.
For your own tests: `rlt_client.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
    from rlt_client.client import JobsClient, RewardClient, TeacherClient
    from rlt_client.errors import APIError, ItemError, RLTError
    from rlt_client.jobs import AsyncJobsClient
    from rlt_client.schemas.builds import Build, BuildProblem, BuildRequest
    from rlt_client.schemas.common import GenStatus, ModelRef, Problem, Scope, ScoreStatus
    from rlt_client.schemas.explain import (
        BatchProblem,
        ExplainBatchRequest,
        ExplainBatchResponse,
        ExplainEvent,
        ExplainRequest,
        ExplainResponse,
        Explanation,
    )
    from rlt_client.schemas.generate import GenerateItem, GenerateRequest, GenerateResponse
    from rlt_client.schemas.reward import (
        Detail,
        KLEstimator,
        Preset,
        RewardItem,
        RewardRequest,
        RewardResponse,
        Score,
        SpecRequest,
        TeacherTokens,
    )

__all__ = [
    "APIError",
    "AsyncJobsClient",
    "AsyncRewardClient",
    "AsyncTeacherClient",
    "BatchProblem",
    "Build",
    "BuildProblem",
    "BuildRequest",
    "Detail",
    "ExplainBatchRequest",
    "ExplainBatchResponse",
    "ExplainEvent",
    "ExplainRequest",
    "ExplainResponse",
    "Explanation",
    "GenStatus",
    "GenerateItem",
    "GenerateRequest",
    "GenerateResponse",
    "ItemError",
    "JobsClient",
    "KLEstimator",
    "ModelRef",
    "Preset",
    "Problem",
    "RLTError",
    "RewardClient",
    "RewardItem",
    "RewardRequest",
    "RewardResponse",
    "Scope",
    "Score",
    "ScoreStatus",
    "SpecRequest",
    "TeacherClient",
    "TeacherTokens",
]

# Looked through in this order when a name is first used: `rlt --help` and `--help` of every server need no client.
_HOMES = (
    "errors",
    "schemas.common",
    "schemas.reward",
    "schemas.explain",
    "schemas.generate",
    "schemas.builds",
    "aio",
    "jobs",
    "client",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
