"""Makes the explanations of a planned problem. Each is read, tried again and scored while its siblings generate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from rlt_client.schemas.common import GenStatus, ModelRef
from rlt_client.schemas.explain import Explanation, ExplanationFlag
from rlt_client.schemas.reward import Score
from rlt_teacher_server import outcome
from rlt_teacher_server.concurrency import aside, together
from rlt_teacher_server.engine.base import Sample, SampleRequest
from rlt_teacher_server.engine.pool import Group
from rlt_teacher_server.explain.listener import Listener
from rlt_teacher_server.explain.plan import Plan
from rlt_teacher_server.explain.ranking import is_doomed
from rlt_teacher_server.policies.registry import Use
from rlt_teacher_server.sampler import Failure, Sampler
from rlt_teacher_server.scoring import Scorer, ScoringPlan
from rlt_teacher_server.seeds import derive_seed

__all__ = ["Explainer", "Outcome"]

BRIEF: Final = 256  # tokens, read in a few tenths of a millisecond; 16,000 would hold up the event loop


@dataclass(frozen=True, slots=True)
class Outcome:
    """An explanation, and what engines gave for it: the last is what it was read from."""

    explanation: Explanation
    tries: tuple[Sample | Failure, ...]


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a sample comes from."""

    policy: ModelRef
    group: Group
    index: int
    asked: SampleRequest


class Explainer:
    """Args:
    scorer: None where no reward server is configured.
    """

    def __init__(self, sampler: Sampler, scorer: Scorer | None) -> None:
        self._sampler = sampler
        self._scorer = scorer

    async def explain(self, plan: Plan, uses: Sequence[Use], listener: Listener) -> list[Outcome]:
        """n explanations of each policy, by index. What is wrong with one is its own `gen_status` and `error`.

        Raises:
            InvalidRequest: what the reward server says of `spec`.
        """
        return await together(self._outcome(plan, origin, listener) for origin in _origins(plan, uses))

    async def _outcome(self, plan: Plan, origin: _Origin, listener: Listener) -> Outcome:
        made = await self._sample(plan, origin, listener)
        self._sampler.metrics.explanation(made.explanation)
        listener.finished(made.explanation)
        kept = made.tries[-1]
        scoring = plan.wanted.scoring
        if scoring is None or isinstance(kept, Failure) or not _wants_score(plan, made.explanation):
            return made
        score = await self._score(plan, scoring, origin, made.explanation, kept)
        listener.scored(origin.index, score)
        flags = [*made.explanation.flags, *scoring.flags(score)]
        return replace(made, explanation=made.explanation.model_copy(update={"score": score, "flags": flags}))

    async def _sample(self, plan: Plan, origin: _Origin, listener: Listener) -> Outcome:
        first = await self._try(plan, origin, origin.asked, listener)
        if plan.retry_tokens is None or not _was_cut_off(first.explanation):
            return first
        listener.restarted(origin.index, "truncated")
        more = replace(origin.asked, max_tokens=plan.retry_tokens)
        return _of_both(first, await self._try(plan, origin, more, listener))

    async def _try(self, plan: Plan, origin: _Origin, asked: SampleRequest, listener: Listener) -> Outcome:
        index = origin.index
        engine_down = partial(listener.restarted, index, "engine_down")
        result = await self._sampler.sample(origin.group, asked, listener.watch(index), engine_down)
        if isinstance(result, Failure):
            explanation = outcome.failed(asked, result.problem, index)
        else:
            codec, format = self._sampler.model.codec, plan.wanted.format
            brief = len(result.token_ids) <= BRIEF
            explanation = await aside(outcome.finished, codec, format, asked, result, index, brief=brief)
            if plan.options.return_tokens:
                explanation.teacher = outcome.teacher_tokens(asked, result, origin.policy.revision)
        explanation.policy = origin.policy
        return Outcome(explanation, (result,))

    async def _score(
        self, plan: Plan, scoring: ScoringPlan, origin: _Origin, explanation: Explanation, sample: Sample
    ) -> Score:
        assert self._scorer is not None  # it made the plan
        teacher = outcome.teacher_tokens(origin.asked, sample, origin.policy.revision)
        item = scoring.item(plan.question, plan.answer, explanation.completion, teacher)
        score = await self._scorer.score(item, spec=scoring.spec, format=plan.wanted.format)
        self._sampler.metrics.score(score.status.value)
        return score.model_copy(update={"index": origin.index})


def _origins(plan: Plan, uses: Sequence[Use]) -> Iterator[_Origin]:
    """Of each policy's samples in turn; those at the same place have the same seed."""
    seeds = [derive_seed(plan.sampling.seed, place) for place in range(plan.options.n)]
    for turn, use in enumerate(uses):
        group = use.group()
        for place, seed in enumerate(seeds):
            index = turn * len(seeds) + place
            yield _Origin(use.policy, group, index, replace(plan.sampling, seed=seed))


def _wants_score(plan: Plan, explanation: Explanation) -> bool:
    """What will be dropped needs no score, except that a comparison is over all samples."""
    compared = plan.options.policies is not None
    return compared or not is_doomed(explanation, plan.options)


def _was_cut_off(explanation: Explanation) -> bool:
    """Whether a larger budget may help: not one that goes round in circles."""
    return explanation.gen_status is GenStatus.truncated and ExplanationFlag.repetition not in explanation.flags


def _of_both(first: Outcome, second: Outcome) -> Outcome:
    """The second try, or the first where the second came to nothing; both are paid for."""
    failed = isinstance(second.tries[-1], Failure)
    tries = (*second.tries, *first.tries) if failed else (*first.tries, *second.tries)
    chosen = first.explanation if failed else second.explanation
    tokens = first.explanation.usage.completion_tokens + second.explanation.usage.completion_tokens
    usage = chosen.usage.model_copy(update={"completion_tokens": tokens})
    flags = [*chosen.flags, ExplanationFlag.retried]
    return Outcome(chosen.model_copy(update={"usage": usage, "flags": flags}), tries)
