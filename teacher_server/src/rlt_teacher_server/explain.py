"""`POST /explain`: prompt, sample, score, rank. Each explanation is scored while its siblings are still generated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlt_client.errors import InvalidRequest
from rlt_client.formats import Format
from rlt_client.prompts import Untokenizable, teacher_prompt
from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse, Explanation, ExplanationUsage
from rlt_client.schemas.reward import RewardItem, Score, needs_distributions
from rlt_service import timing
from rlt_teacher_server import outcome
from rlt_teacher_server.catalog import Catalog
from rlt_teacher_server.checks import check_explain
from rlt_teacher_server.concurrency import together
from rlt_teacher_server.engine.base import Sample, SampleRequest
from rlt_teacher_server.engine.pool import Group
from rlt_teacher_server.policies.registry import Use
from rlt_teacher_server.sampler import Failure, Sampler, finished_samples
from rlt_teacher_server.scoring import Scorer
from rlt_teacher_server.seeds import derive_seed, fresh_seed

__all__ = ["ExplainService"]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is the same for all samples of one request."""

    request: ExplainRequest
    format: Format
    sampling: SampleRequest
    """With the seed of the request."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    explanation: Explanation
    result: Sample | Failure


class ExplainService:
    """Args:
    budget: tokens of one explanation where the request names none.
    scorer: None where no reward server is configured.
    """

    def __init__(self, sampler: Sampler, catalog: Catalog, *, budget: int, scorer: Scorer | None) -> None:
        self._sampler = sampler
        self._catalog = catalog
        self._budget = budget
        self._scorer = scorer

    async def explain(self, request: ExplainRequest) -> ExplainResponse:
        """What is wrong with one sample is that sample's `gen_status` and `error`.

        Raises:
            NotFound: policy_not_found, unknown_format.
            InvalidRequest: empty_question, empty_answer, untokenizable, format_unavailable, scoring_not_configured,
                temperature_too_low, and what the reward server says of `spec`.
            Overloaded: try again.
            Unavailable: the engine is down and no sample was finished.
        """
        began = time.perf_counter()
        plan = await self._plan(request)
        with self._sampler.admission.admit(request.n):
            async with self._sampler.policies.using(request.policy) as use:
                group = use.group()
                outcomes = await together(self._outcome(plan, use, group, index) for index in range(request.n))
        return self._response(plan, use.policy, outcomes, began)

    async def _plan(self, request: ExplainRequest) -> _Plan:
        check_explain(request, can_score=self._scorer is not None)
        entry = self._catalog.get(request.format)
        prompt = await asyncio.to_thread(self._encode, entry.format, request)
        sampling = SampleRequest(
            prompt_token_ids=prompt,
            max_tokens=request.max_tokens or await self._sampler.room(len(prompt), self._budget),
            seed=fresh_seed() if request.seed is None else request.seed,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=max(request.top_k, 0),
            stop_token_ids=entry.stop_token_ids,
            stop=(entry.format.teacher.close,),
        )
        return _Plan(request, entry.format, sampling)

    def _encode(self, format: Format, request: ExplainRequest) -> list[int]:
        codec = self._sampler.model.codec
        try:
            return codec.encode(teacher_prompt(codec, format, request.question, request.answer)).ids
        except Untokenizable as error:
            raise InvalidRequest(str(error), type="untokenizable") from error

    async def _outcome(self, plan: _Plan, use: Use, group: Group, index: int) -> _Outcome:
        asked = replace(plan.sampling, seed=derive_seed(plan.sampling.seed, index))
        result = await self._sampler.sample(group, asked)
        if isinstance(result, Failure):
            explanation = outcome.failed(asked, result.problem, index)
        else:
            explanation = await self._finish(plan, use.policy, asked, result, index)
        self._sampler.metrics.sample(explanation.gen_status, explanation.usage.completion_tokens)
        return _Outcome(explanation, result)

    async def _finish(
        self, plan: _Plan, policy: ModelRef, asked: SampleRequest, sample: Sample, index: int
    ) -> Explanation:
        request = plan.request
        explanation = await asyncio.to_thread(  # decoding 16,000 tokens would hold up the event loop
            outcome.finished, self._sampler.model.codec, plan.format, asked, sample, index
        )
        teacher = outcome.teacher_tokens(asked, sample, policy.revision)
        if request.return_tokens:
            explanation.teacher = teacher
        if request.score:
            item = RewardItem(question=request.question, answer=request.answer, teacher=teacher)
            if needs_distributions(request.spec):
                item = item.model_copy(update={"completion": explanation.completion, "teacher": None})
            explanation.score = await self._score(plan, item, index)
        return explanation

    async def _score(self, plan: _Plan, item: RewardItem, index: int) -> Score:
        """From the ids and log-probs that were sampled: no second pass of the teacher."""
        assert self._scorer is not None  # checked with the request
        score = await self._scorer.score(item, spec=plan.request.spec, format=plan.format)
        self._sampler.metrics.score(score.status.value)
        return score.model_copy(update={"index": index})

    def _response(self, plan: _Plan, policy: ModelRef, outcomes: Sequence[_Outcome], began: float) -> ExplainResponse:
        samples = finished_samples(each.result for each in outcomes)
        spent = timing.split(began, time.perf_counter(), [sample.moments for sample in samples])
        self._sampler.metrics.request(spent)
        ranked = outcome.rank(each.explanation for each in outcomes)
        return ExplainResponse(
            explanations=ranked,
            best=outcome.best(ranked),
            policy=policy,
            format=plan.format.ref,
            usage=ExplanationUsage(
                prompt_tokens=len(plan.sampling.prompt_token_ids),
                completion_tokens=sum(len(sample.token_ids) for sample in samples),
            ),
            timing=spent,
        )
