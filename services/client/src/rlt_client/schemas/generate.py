"""`POST /generate`: token level, for trainers. Ids in; ids, log-probs and the policy's revision out."""

from __future__ import annotations

from pydantic import Field

from rlt_client.schemas.common import ModelRef, Problem, Reply, Request, Timing

__all__ = ["GenerateItem", "GenerateRequest", "GenerateResponse", "Generated"]


class GenerateItem(Request):
    """One sample. Give each its own seed: equal prompts with one seed give equal samples."""

    id: str | None = Field(default=None, max_length=256)
    prompt_token_ids: list[int] = Field(min_length=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class GenerateRequest(Request):
    items: list[GenerateItem] = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=0.7, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)
    stop_token_ids: list[int] = Field(default_factory=list, description="kept in the output")
    stop: list[str] = Field(default_factory=list, description="their tokens are kept in the output")
    policy: str | None = None


class Generated(Reply):
    id: str | None = None
    index: int
    token_ids: list[int] = Field(description="what was sampled, stop tokens included, shape [T]")
    logprobs: list[float] = Field(description="of the distribution sampled from, nats, shape [T]")
    finish_reason: str | None
    policy_revision: str
    error: Problem | None = None


class GenerateResponse(Reply):
    items: list[Generated]
    policy: ModelRef
    engine: str | None = Field(
        default=None, description="what generated, such as `vllm 0.31.0`; engines of several versions are all named"
    )
    timing: Timing
