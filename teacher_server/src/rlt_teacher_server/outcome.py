"""From what an engine sampled to what the caller reads. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rlt_client.formats import Format
from rlt_client.prompts import TextCodec, read_completion
from rlt_client.schemas.common import GenStatus, Problem
from rlt_client.schemas.explain import Explanation, ExplanationUsage
from rlt_client.schemas.reward import TeacherTokens
from rlt_teacher_server.engine.base import Sample, SampleRequest
from rlt_teacher_server.errors import Reason

__all__ = ["best", "failed", "finished", "rank", "teacher_tokens"]


def finished(codec: TextCodec, format: Format, asked: SampleRequest, sample: Sample, index: int) -> Explanation:
    """The explanation that the sampled ids hold."""
    read = read_completion(codec, format, sample.token_ids)
    completion = codec.decode(sample.token_ids) if read.closed else read.text.removeprefix(format.teacher.held)
    return Explanation(
        index=index,
        text=read.text,
        completion=completion,
        gen_status=_status(read.closed, sample),
        finish_reason=sample.finish_reason,
        seed=asked.seed,
        usage=_usage(asked, len(sample.token_ids)),
    )


def _status(closed: bool, sample: Sample) -> GenStatus:
    if closed:
        return GenStatus.complete
    return GenStatus.truncated if sample.finish_reason == "length" else GenStatus.malformed


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


def rank(explanations: Iterable[Explanation]) -> list[Explanation]:
    """Highest reward first, then what has none; equals by index."""
    return sorted(explanations, key=_place)


def _place(explanation: Explanation) -> tuple[bool, float, int]:
    reward = _reward(explanation)
    return reward is None, -(reward or 0.0), explanation.index


def best(ranked: Iterable[Explanation]) -> int | None:
    """`index` of the first that is complete and has a reward."""
    found = (e.index for e in ranked if e.gen_status is GenStatus.complete and _reward(e) is not None)
    return next(found, None)


def _reward(explanation: Explanation) -> float | None:
    return explanation.score.reward if explanation.score else None
