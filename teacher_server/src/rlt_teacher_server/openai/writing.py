"""From explanations to choices. Pure."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from rlt_client.schemas.common import GenStatus
from rlt_client.schemas.explain import ExplainResponse, Explanation, ExplanationUsage
from rlt_teacher_server.openai.errors import sample_refusal
from rlt_teacher_server.openai.reading import Asked
from rlt_teacher_server.openai.replies import (
    ChatCompletion,
    ChatUsage,
    Choice,
    ChoiceDetails,
    FinishReason,
    Logprobs,
    ReplyDetails,
    ReplyMessage,
)

__all__ = [
    "Head",
    "LogprobsOf",
    "completion",
    "details",
    "finish_reason",
    "raise_if_nothing",
    "refusal",
    "usage",
    "whole",
]

LogprobsOf = Callable[[Explanation, str], Logprobs]
"""Log-probs of a complete explanation, given the name of its format."""

REFUSALS: Final = {
    GenStatus.truncated: "There is no explanation: its budget of tokens ran out before it was closed.",
    GenStatus.malformed: "There is no explanation: what was written is not closed, or holds a tag of its format.",
}


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one reply have in common."""

    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


def completion(head: Head, asked: Asked, response: ExplainResponse, logprobs: LogprobsOf) -> ChatCompletion:
    """Raises `APIError` where every sample failed before a single token."""
    raise_if_nothing(response)
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=response.policy.name,
        system_fingerprint=response.policy.revision,
        choices=[_choice(asked, each, response.format.name, logprobs) for each in response.explanations],
        usage=usage(response.usage),
        rlt=whole(response),
    )


def raise_if_nothing(response: ExplainResponse) -> None:
    """A choice may have failed among others; where all have, the request has."""
    problems = [each.error for each in response.explanations if each.error is not None]
    if problems and len(problems) == len(response.explanations):
        raise sample_refusal(problems[0])


def _choice(asked: Asked, explanation: Explanation, format: str, logprobs: LogprobsOf) -> Choice:
    return Choice(
        index=explanation.index,
        message=ReplyMessage(content=explanation.text, refusal=refusal(explanation)),
        finish_reason=finish_reason(explanation.gen_status),
        logprobs=logprobs(explanation, format) if asked.logprobs and explanation.text is not None else None,
        rlt=details(asked, explanation),
    )


def finish_reason(status: GenStatus) -> FinishReason:
    if status is GenStatus.complete:
        return "stop"
    return "length" if status is GenStatus.truncated else "content_filter"


def refusal(explanation: Explanation) -> str | None:
    """Why there is no explanation; None where there is one."""
    if explanation.gen_status is GenStatus.complete:
        return None
    if explanation.error is not None:
        return f"There is no explanation: {explanation.error.detail or explanation.error.title}"
    return REFUSALS.get(explanation.gen_status, f"There is no explanation: {explanation.gen_status}.")


def details(asked: Asked, explanation: Explanation) -> ChoiceDetails:
    return ChoiceDetails(
        gen_status=explanation.gen_status,
        reward=explanation.score.reward if explanation.score else None,
        policy=explanation.policy,
        seed=explanation.seed,
        flags=explanation.flags,
        leaks=explanation.leaks,
        score=explanation.score,
        error=explanation.error,
        teacher=explanation.teacher if asked.return_tokens else None,
    )


def usage(spent: ExplanationUsage) -> ChatUsage:
    return ChatUsage(
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        total_tokens=spent.prompt_tokens + spent.completion_tokens,
    )


def whole(response: ExplainResponse) -> ReplyDetails:
    return ReplyDetails(
        policy=response.policy,
        format=response.format,
        best=response.best,
        seed=response.seed,
        dropped=response.dropped,
        timing=response.timing,
    )
