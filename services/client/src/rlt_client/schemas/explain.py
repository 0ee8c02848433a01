"""`POST /explain`: question and answer in, explanations out."""

from __future__ import annotations

from pydantic import Field

from rlt_client.schemas.common import FormatRef, GenStatus, ModelRef, Problem, Reply, Request, Timing
from rlt_client.schemas.reward import Preset, Score, SpecRequest, TeacherTokens

__all__ = ["ExplainRequest", "ExplainResponse", "Explanation", "ExplanationUsage"]

MAX_SAMPLES = 256


class ExplainRequest(Request):
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1, description="the ground-truth solution, without tags")
    n: int = Field(default=1, ge=1, le=MAX_SAMPLES, description="explanations to sample")
    max_tokens: int | None = Field(default=None, ge=1, description="tokens of one explanation at most")
    temperature: float = Field(default=0.7, ge=0, le=2, allow_inf_nan=False, description="0.7 in the paper")
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1, description="0 and −1: no limit")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="same seed and request, same explanations")
    format: str | None = Field(default=None, description="name of a prompt format; the server's default if left out")
    policy: str | None = Field(default=None, description="name of a served policy; the active one if left out")
    score: bool = Field(default=False, description="score each explanation on the reward server and rank by reward")
    spec: Preset | SpecRequest | None = Field(default=None, description="the reward to rank by; `rlt` if left out")
    return_tokens: bool = Field(default=False, description="add `teacher`, ready to be sent to /reward")


class ExplanationUsage(Reply):
    prompt_tokens: int
    completion_tokens: int


class Explanation(Reply):
    index: int = Field(description="which of the n samples, 0 … n−1")
    text: str | None = Field(description="the text between the teacher's tags, white space included; null if none")
    completion: str | None = Field(description="everything emitted after the prompt, closing tag included")
    gen_status: GenStatus
    finish_reason: str | None = Field(description="the engine's own word: stop, length, …")
    seed: int | None = Field(default=None, description="the seed of this sample")
    usage: ExplanationUsage
    score: Score | None = None
    teacher: TeacherTokens | None = None
    error: Problem | None = Field(default=None, description="why nothing was generated")


class ExplainResponse(Reply):
    explanations: list[Explanation] = Field(description="by reward, highest first, where scored; else by index")
    best: int | None = Field(description="`index` of the complete explanation with the highest reward")
    policy: ModelRef
    format: FormatRef
    usage: ExplanationUsage
    timing: Timing
