"""`/explain` and `/explain/batch`: plan, let in, hold the policies, explain, answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

from rlt_client.errors import APIError, InvalidRequest, Unavailable
from rlt_client.schemas.common import FieldError
from rlt_client.schemas.explain import (
    BatchProblem,
    ExplainBatchRequest,
    ExplainBatchResponse,
    ExplainRequest,
    ExplainResponse,
    Started,
)
from rlt_service import timing
from rlt_teacher_server.catalog import Catalog
from rlt_teacher_server.concurrency import together
from rlt_teacher_server.explain import batch
from rlt_teacher_server.explain.batch import Answer
from rlt_teacher_server.explain.events import Mailbox, interval
from rlt_teacher_server.explain.explainer import Explainer
from rlt_teacher_server.explain.listener import Listener
from rlt_teacher_server.explain.plan import Plan, Planner, Wanted
from rlt_teacher_server.explain.reply import reply, samples_of, why_nothing
from rlt_teacher_server.explain.stream import ExplainStream
from rlt_teacher_server.policies.registry import Use
from rlt_teacher_server.reading import ExplanationText
from rlt_teacher_server.sampler import Sampler
from rlt_teacher_server.scoring import Scorer
from rlt_teacher_server.seeds import derive_seed

__all__ = ["ExplainService"]


class ExplainService:
    """Args:
    budget: tokens of one explanation where the request names none.
    scorer: None where no reward server is configured.
    """

    def __init__(self, sampler: Sampler, catalog: Catalog, *, budget: int, scorer: Scorer | None) -> None:
        self._sampler = sampler
        self._catalog = catalog
        self._planner = Planner(sampler, catalog, budget=budget, scorer=scorer)
        self._explainer = Explainer(sampler, scorer)
        self._streams = 0

    async def explain(self, request: ExplainRequest) -> ExplainResponse:
        """What is wrong with one sample is that sample's `gen_status` and `error`.

        Raises:
            NotFound: policy_not_found, unknown_format.
            Conflict: policy_not_loaded.
            InvalidRequest: empty_question, empty_answer, untokenizable, format_unavailable, scoring_not_configured,
                sampling_unusable_for_kl, temperature_too_low, retry_too_small, and
                what the reward server says of `spec`.
            PayloadTooLarge: too_many_samples.
            Overloaded: try again.
            Unavailable: the engine is down and no sample was finished.
        """
        return await self._explain(request, Listener())

    async def stream(self, request: ExplainRequest) -> ExplainStream:
        """What `explain` does, told while it is done. Returns when everything is ready to be sampled.

        Raises as `explain`, as long as nothing has been sampled; later failures are the last event.
        """
        began = time.perf_counter()
        metrics = self._sampler.metrics
        format = self._catalog.get(request.format).format
        mailbox = Mailbox(
            partial(ExplanationText, self._sampler.model.codec, format),
            first_token=lambda: metrics.first_token(time.perf_counter() - began),
            interval=lambda: interval(self._streams),
        )
        return await ExplainStream.open(mailbox, partial(self._explain, request), self._streaming())

    async def batch(self, request: ExplainBatchRequest) -> ExplainBatchResponse:
        """Every problem on its own; what is wrong with one is its `error`.

        Raises as `explain` for what is wrong with the request whatever its problems are, and:
            Unavailable: the engine is down and no problem got a sample.
        """
        began = time.perf_counter()
        problems = request.problems
        wanted = await self._planner.wanted(request, len(problems))
        with self._sampler.admission.admit(wanted.samples * len(problems)):
            async with self._using(wanted) as uses:
                works = (self._answer(wanted, uses, place, problem) for place, problem in enumerate(problems))
                answers = await together(works)
        batch.raise_if_down(answers)
        samples = samples_of(outcome for answer in answers for outcome in answer.outcomes)
        spent = timing.split(began, time.perf_counter(), [sample.moments for sample in samples])
        self._sampler.metrics.request(spent)
        failed = sum(answer.response is None for answer in answers)
        places = enumerate(zip(problems, answers, strict=True))
        return ExplainBatchResponse(
            items=[batch.item(problem, place, answer) for place, (problem, answer) in places],
            policy=uses[0].policy,
            format=wanted.format.ref,
            succeeded=len(answers) - failed,
            failed=failed,
            usage=batch.usage(answers),
            timing=spent,
        )

    async def _explain(self, request: ExplainRequest, listener: Listener) -> ExplainResponse:
        began = time.perf_counter()
        wanted = await self._planner.wanted(request)
        plan = await self._planner.plan(wanted, request.question, request.answer, wanted.seed)
        with self._sampler.admission.admit(wanted.samples):
            async with self._using(wanted) as uses:
                listener.started(_started(plan, uses))
                outcomes = await self._explainer.explain(plan, uses, listener)
        error = why_nothing(outcomes)
        if isinstance(error, Unavailable):
            raise error
        response = reply(plan, [use.policy for use in uses], outcomes, began)
        self._sampler.metrics.request(response.timing)
        self._sampler.metrics.dropped(response.dropped)
        return response

    async def _answer(self, wanted: Wanted, uses: Sequence[Use], place: int, problem: BatchProblem) -> Answer:
        began = time.perf_counter()
        seed = derive_seed(wanted.seed, place) if problem.seed is None else problem.seed
        try:
            plan = await self._planner.plan(wanted, problem.question, problem.answer, seed, at=f"/problems/{place}")
        except (InvalidRequest, Unavailable) as error:
            return Answer(None, error)
        outcomes = await self._explainer.explain(plan, uses, Listener())
        return batch.answer(plan, [use.policy for use in uses], outcomes, began)

    @contextmanager
    def _streaming(self) -> Iterator[None]:
        self._streams += 1
        try:
            with self._sampler.metrics.streaming():
                yield
        finally:
            self._streams -= 1

    @asynccontextmanager
    async def _using(self, wanted: Wanted) -> AsyncIterator[list[Use]]:
        """All policies of a request, held before anything is sampled: one that is missing costs nothing."""
        async with AsyncExitStack() as stack:
            uses: list[Use] = []
            for place in range(len(wanted.policies)):
                uses.append(await self._use(stack, wanted, place, beside=uses[-1] if uses else None))
                _expect_another(uses)
            yield uses

    async def _use(self, stack: AsyncExitStack, wanted: Wanted, place: int, beside: Use | None) -> Use:
        using = self._sampler.policies.using(wanted.policies[place], beside)
        try:
            return await stack.enter_async_context(using)
        except APIError as error:
            if wanted.options.policies is not None:
                error.errors = [FieldError(pointer=f"/policies/{place}", detail=each.detail) for each in error.errors]
            raise


def _expect_another(uses: Sequence[Use]) -> None:
    """A policy goes by its name and by its revision. Raises `InvalidRequest` where the last is one of the others."""
    *others, last = uses
    if last.policy.revision in [use.policy.revision for use in others]:
        detail = f"is {last.policy.name} at {last.policy.revision} once more"
        raise InvalidRequest(errors=[FieldError(pointer=f"/policies/{len(others)}", detail=detail)])


def _started(plan: Plan, uses: Sequence[Use]) -> Started:
    return Started(
        samples=plan.wanted.samples,
        policies=[use.policy for use in uses],
        format=plan.wanted.format.ref,
        seed=plan.sampling.seed,
        prompt_tokens=len(plan.sampling.prompt_token_ids),
    )
