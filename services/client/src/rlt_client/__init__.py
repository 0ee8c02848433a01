"""Client, wire types and prompt formats of the RLT Platform (arXiv 2506.08388). Needs httpx and pydantic only.

Clients: `RewardClient`, `TeacherClient` and their asynchronous twins in `rlt_client.aio`.
Wire types: `rlt_client.schemas`. Prompt formats: `rlt_client.formats`. Errors: `rlt_client.errors`.
For your own tests: `rlt_client.testing`.
"""

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.client import RewardClient, TeacherClient
from rlt_client.errors import APIError, ItemError, RLTError
from rlt_client.schemas.common import GenStatus, ModelRef, Problem, Scope, ScoreStatus
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse, Explanation
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
    "AsyncRewardClient",
    "AsyncTeacherClient",
    "Detail",
    "ExplainRequest",
    "ExplainResponse",
    "Explanation",
    "GenStatus",
    "GenerateItem",
    "GenerateRequest",
    "GenerateResponse",
    "ItemError",
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
