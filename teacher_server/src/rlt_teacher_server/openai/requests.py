"""What a chat request may hold. Fields that nobody knows are let through, as OpenAI's own clients expect."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rlt_client.schemas.common import Request
from rlt_client.schemas.explain import MAX_SAMPLES, Incomplete, Keep
from rlt_client.schemas.reward import Preset, SpecRequest

__all__ = ["ALIAS", "ChatMessage", "ChatRequest", "ExplainExtras", "StreamOptions", "TextPart"]

ALIAS = "teacher"
"""The model that is always the active policy."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class TextPart(_Open):
    type: str = Field(description="`text`; others are refused")
    text: str | None = None


class ChatMessage(_Open):
    role: str
    content: str | list[TextPart] | None = None


class StreamOptions(_Open):
    include_usage: bool | None = False


class ExplainExtras(Request):
    """What `/explain` can be told and OpenAI's protocol has no word for. Unknown names are refused here."""

    format: str | None = Field(default=None, description="name of a prompt format; the server's default if left out")
    score: bool = Field(default=False, description="score each explanation; `choices` are then ranked by reward")
    spec: Preset | SpecRequest | None = Field(default=None, description="the reward to rank by; `rlt` if left out")
    min_reward: float | None = Field(default=None, description="leave out what has a lower reward or none")
    keep: Keep = Field(default=Keep.all, description="`best`: one choice, the best; needs `score`")
    incomplete: Incomplete = Field(default=Incomplete.keep, description="what becomes of what is no explanation")
    retry_max_tokens: int | None = Field(default=None, description="budget of a second try")
    drop_leaks: bool = Field(default=False, description="leave out what refers to having been given the solution")
    return_tokens: bool = Field(default=False, description="add `rlt.teacher` to each choice, ready for /reward")


class ChatRequest(_Open):
    """OpenAI's chat request. Null means: left out."""

    model: str = Field(
        min_length=1, description=f"`{ALIAS}` for the active policy, a policy's name or revision, or `name@revision`"
    )
    messages: list[ChatMessage] = Field(
        min_length=1, description="the question (`user`), then the ground-truth solution (`assistant`)"
    )
    answer: str | None = Field(
        default=None, description="the ground-truth solution, where the messages end with the question"
    )
    n: int | None = Field(default=None, ge=1, le=MAX_SAMPLES, description="explanations to sample; 1 if left out")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="tokens of one explanation at most")
    max_tokens: int | None = Field(default=None, ge=1, description="the older name of `max_completion_tokens`")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0.7 if left out, as in the paper; OpenAI has 1"
    )
    top_p: float | None = Field(default=None, gt=0, le=1, description="1 if left out")
    top_k: int | None = Field(default=None, ge=-1, description="vLLM's: no limit if left out")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="same seed and request, same explanations")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(default=False, description="log-probs of the tokens that were sampled")
    rlt: ExplainExtras | None = Field(default=None, description="what OpenAI's protocol has no word for")

    @property
    def others(self) -> dict[str, Any]:
        """Fields that are not named above."""
        return self.model_extra or {}
