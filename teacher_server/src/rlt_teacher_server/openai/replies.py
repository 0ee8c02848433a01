"""What a chat request is answered with: OpenAI's shapes, and `rlt` for what they have no word for."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rlt_client.schemas.common import FormatRef, GenStatus, ModelRef, Problem, Reply, Timing
from rlt_client.schemas.explain import Dropped, ExplanationFlag, Leak
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.reward import Score, TeacherTokens

__all__ = [
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatUsage",
    "Choice",
    "ChoiceDelta",
    "ChoiceDetails",
    "ChunkChoice",
    "FinishReason",
    "Logprobs",
    "ModelCard",
    "ModelCards",
    "ModelDetails",
    "OpenAIError",
    "OpenAIErrorBody",
    "ReplyDetails",
    "ReplyMessage",
    "TokenLogprob",
]

FinishReason = Literal["stop", "length", "content_filter"]
"""`stop`: a complete explanation. `length`: its budget ran out. `content_filter`: what was written is not one."""


class TokenLogprob(Reply):
    """A token that was sampled. The texts, and the bytes, of all join to what was sampled of the content."""

    token: str = Field(description="what it adds to the text: nothing where it is a part of a character")
    bytes: list[int]
    logprob: float = Field(description="of the distribution sampled from, nats")
    top_logprobs: list[None] = Field(default_factory=list, description="always empty")


class Logprobs(Reply):
    content: list[TokenLogprob]
    refusal: None = None


class ChoiceDetails(Reply):
    """Of one explanation, as `/explain` tells it."""

    gen_status: GenStatus
    reward: float | None = Field(default=None, description="null where it was not scored")
    policy: ModelRef | None = None
    seed: int | None = None
    flags: list[ExplanationFlag | str] = Field(default_factory=list)
    leaks: list[Leak] = Field(default_factory=list)
    score: Score | None = None
    error: Problem | None = None
    teacher: TeacherTokens | None = None


class ReplyMessage(Reply):
    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="the explanation; null where there is none")
    refusal: str | None = Field(default=None, description="why there is none")


class Choice(Reply):
    index: int
    message: ReplyMessage
    finish_reason: FinishReason
    logprobs: Logprobs | None = None
    rlt: ChoiceDetails


class ChatUsage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyDetails(Reply):
    policy: ModelRef
    format: FormatRef
    best: int | None = Field(description="`index` of the complete explanation with the highest reward")
    seed: int | None = Field(description="repeats the request")
    dropped: Dropped
    timing: Timing


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="seconds since 1970")
    model: str = Field(description="name of the policy")
    system_fingerprint: str = Field(description="revision of the policy: the content hash of its weights")
    choices: list[Choice] = Field(description="by reward, highest first, where scored; else by index")
    usage: ChatUsage
    rlt: ReplyDetails


class ChoiceDelta(Reply):
    """Holds what it says and nothing else: to OpenAI's clients a null is a value."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None

    @model_serializer(mode="wrap")
    def _without_nulls(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in written(self).items() if value is not None}


class ChunkChoice(Reply):
    index: int
    delta: ChoiceDelta
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None
    rlt: ChoiceDetails | None = None


class ChatCompletionChunk(Reply):
    """One `data:` line of a streamed reply; the last line is `data: [DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
    rlt: ReplyDetails | None = None


class ModelDetails(Reply):
    name: str
    revision: str
    kind: ModelKind
    active: bool


class ModelCard(Reply):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when it was loaded, seconds since 1970")
    owned_by: Literal["rlt"] = "rlt"
    rlt: ModelDetails


class ModelCards(Reply):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class OpenAIErrorBody(Reply):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Reply):
    error: OpenAIErrorBody
