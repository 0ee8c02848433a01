"""From what an engine sampled to what the caller reads. Pure."""

from __future__ import annotations

from rlt_client.formats import Format
from rlt_client.prompts import TextCodec
from rlt_client.schemas.common import GenStatus, Problem
from rlt_client.schemas.explain import Explanation, ExplanationUsage
from rlt_client.schemas.reward import TeacherTokens
from rlt_teacher_server.engine.base import Sample, SampleRequest
from rlt_teacher_server.errors import Reason
from rlt_teacher_server.reading import read_sample

__all__ = ["failed", "finished", "teacher_tokens"]


def finished(codec: TextCodec, format: Format, asked: SampleRequest, sample: Sample, index: int) -> Explanation:
    """The explanation that the sampled ids hold."""
    read = read_sample(codec, format, sample.token_ids, sample.finish_reason)
    return Explanation(
        index=index,
        text=read.text,
        completion=read.completion,
        gen_status=read.gen_status,
        finish_reason=sample.finish_reason,
        seed=asked.seed,
        usage=_usage(asked, len(sample.token_ids)),
        flags=list(read.flags),
        leaks=read.leaks,
    )


def failed(asked: SampleRequest, problem: Problem, index: int) -> Explanation:
    """An explanation that was not generated, and why."""
    overflow = problem.type == Reason.context_overflow
    return Explanation(
        index=index,
        text=None,
        completion=None,
        gen_status=GenStatus.context_overflow if overflow else GenStatus.engine_error,
        finish_reason=None,
        seed=asked.seed,
        usage=_usage(asked, 0),
        error=problem,
    )


def teacher_tokens(asked: SampleRequest, sample: Sample, revision: str) -> TeacherTokens:
    """Ready to be sent to /reward."""
    return TeacherTokens(
        token_ids=sample.token_ids,
        logprobs=sample.logprobs,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        revision=revision,
    )


def _usage(asked: SampleRequest, completion_tokens: int) -> ExplanationUsage:
    return ExplanationUsage(prompt_tokens=len(asked.prompt_token_ids), completion_tokens=completion_tokens)
