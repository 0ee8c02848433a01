"""What a request is answered with, from what was made for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from rlt_client.errors import ItemError, Unavailable
from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.explain import ExplainResponse, ExplanationUsage
from rlt_service import timing
from rlt_teacher_server.engine.base import Sample, made_by
from rlt_teacher_server.explain.comparison import compare
from rlt_teacher_server.explain.explainer import Outcome
from rlt_teacher_server.explain.plan import Plan
from rlt_teacher_server.explain.ranking import select
from rlt_teacher_server.sampler import Failure

__all__ = ["reply", "samples_of", "why_nothing"]


def reply(plan: Plan, policies: Sequence[ModelRef], outcomes: Sequence[Outcome], began: float) -> ExplainResponse:
    """Args:
    outcomes: by index.
    began: when the work on it did, seconds of `time.perf_counter`.
    """
    explanations = [each.explanation for each in outcomes]
    samples = samples_of(outcomes)
    selection = select(explanations, plan.options)
    compared = plan.options.policies is not None
    return ExplainResponse(
        explanations=selection.explanations,
        best=selection.best,
        policy=policies[0],
        engine=made_by(samples),
        format=plan.wanted.format.ref,
        seed=plan.sampling.seed,
        dropped=selection.dropped,
        unscored=next((each.score.error for each in explanations if each.score and each.score.error), None),
        comparison=compare(policies, explanations) if compared else None,
        usage=ExplanationUsage(
            prompt_tokens=len(plan.sampling.prompt_token_ids),
            completion_tokens=sum(each.usage.completion_tokens for each in explanations),
        ),
        timing=timing.split(began, time.perf_counter(), [sample.moments for sample in samples]),
    )


def samples_of(outcomes: Iterable[Outcome]) -> list[Sample]:
    """Everything that engines generated, first tries too."""
    return [each for outcome in outcomes for each in outcome.tries if isinstance(each, Sample)]


def why_nothing(outcomes: Iterable[Outcome]) -> Unavailable | ItemError | None:
    """Why not a single sample was made; None where one was. An engine that was down comes first: worth asking again."""
    tries = [each for outcome in outcomes for each in outcome.tries]
    failures = [each for each in tries if isinstance(each, Failure)]
    if len(failures) < len(tries):
        return None
    down = next((failure.down for failure in failures if failure.down is not None), None)
    return down or ItemError(failures[0].problem)
