"""Many problems in one request: what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlt_client.errors import APIError, ItemError, Unavailable
from rlt_client.schemas.common import ModelRef, Problem
from rlt_client.schemas.explain import BatchItem, BatchProblem, ExplainResponse, ExplanationUsage
from rlt_teacher_server.explain.explainer import Outcome
from rlt_teacher_server.explain.plan import Plan
from rlt_teacher_server.explain.reply import reply, why_nothing

__all__ = ["Answer", "answer", "item", "raise_if_down", "usage"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One problem's reply, or why there is none."""

    response: ExplainResponse | None
    error: APIError | ItemError | None = None
    outcomes: Sequence[Outcome] = ()


def answer(plan: Plan, policies: Sequence[ModelRef], outcomes: Sequence[Outcome], began: float) -> Answer:
    """A problem of which not a single sample was made has an error in place of a reply."""
    error = why_nothing(outcomes)
    return Answer(None if error else reply(plan, policies, outcomes, began), error, outcomes)


def raise_if_down(answers: Sequence[Answer]) -> None:
    """Raises `Unavailable` where no problem has a reply, and an engine was down for at least one: ask again."""
    down = next((each.error for each in answers if isinstance(each.error, Unavailable)), None)
    if down is not None and all(each.response is None for each in answers):
        raise down


def item(problem: BatchProblem, index: int, answer: Answer) -> BatchItem:
    return BatchItem(id=problem.id, index=index, result=answer.response, error=_problem(answer.error))


def usage(answers: Sequence[Answer]) -> ExplanationUsage:
    """Of all replies together."""
    each = [answer.response.usage for answer in answers if answer.response is not None]
    return ExplanationUsage(
        prompt_tokens=sum(usage.prompt_tokens for usage in each),
        completion_tokens=sum(usage.completion_tokens for usage in each),
    )


def _problem(error: APIError | ItemError | None) -> Problem | None:
    if isinstance(error, APIError):
        return error.problem()
    return error.problem if error else None
