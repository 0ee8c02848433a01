"""`POST /generate`: token level, for trainers. Ids in; ids, log-probs and the policy's revision out."""

from __future__ import annotations

import time

from rlt_client.schemas.common import ModelRef
from rlt_client.schemas.generate import Generated, GenerateItem, GenerateRequest, GenerateResponse
from rlt_service import timing
from rlt_teacher_server.checks import check_items, check_temperature
from rlt_teacher_server.concurrency import together
from rlt_teacher_server.engine.base import Sample, SampleRequest, made_by
from rlt_teacher_server.engine.pool import Group
from rlt_teacher_server.policies.registry import Use
from rlt_teacher_server.sampler import Failure, Sampler, finished_samples
from rlt_teacher_server.seeds import fresh_seed

__all__ = ["GenerateService"]


class GenerateService:
    """Args:
    max_items: items of one request at most.
    """

    def __init__(self, sampler: Sampler, *, max_items: int) -> None:
        self._sampler = sampler
        self._max_items = max_items

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Continue every item. What is wrong with one item is that item's `error`.

        Raises:
            NotFound: policy_not_found.
            InvalidRequest: temperature_too_low.
            PayloadTooLarge: too_many_items.
            Overloaded: try again.
            Unavailable: the engine is down and no item was finished.
        """
        began = time.perf_counter()
        check_temperature(request.temperature)
        check_items(len(request.items), self._max_items)
        with self._sampler.admission.admit(len(request.items)):
            async with self._sampler.policies.using(request.policy) as use:
                results = await self._sample(use, request)
        samples = finished_samples(results)
        spent = timing.split(began, time.perf_counter(), [each.moments for each in samples])
        self._sampler.metrics.request(spent)
        pairs = enumerate(zip(request.items, results, strict=True))
        items = [self._generated(use.policy, item, index, result) for index, (item, result) in pairs]
        return GenerateResponse(items=items, policy=use.policy, engine=made_by(samples), timing=spent)

    async def _sample(self, use: Use, request: GenerateRequest) -> list[Sample | Failure]:
        """Items with one prompt are one group."""
        groups: dict[tuple[int, ...], Group] = {}
        of_item = [groups.setdefault(tuple(item.prompt_token_ids), use.group()) for item in request.items]
        pairs = zip(of_item, request.items, strict=True)
        return await together(self._sampler.sample(group, _asked(request, item)) for group, item in pairs)

    def _generated(self, policy: ModelRef, item: GenerateItem, index: int, result: Sample | Failure) -> Generated:
        failure, sample = (result, None) if isinstance(result, Failure) else (None, result)
        problem = failure.problem if failure else None
        self._sampler.metrics.generated(len(sample.token_ids) if sample else 0, problem.type if problem else None)
        return Generated(
            id=item.id,
            index=index,
            token_ids=sample.token_ids if sample else [],
            logprobs=sample.logprobs if sample else [],
            finish_reason=sample.finish_reason if sample else None,
            policy_revision=policy.revision,
            error=problem,
        )


def _asked(request: GenerateRequest, item: GenerateItem) -> SampleRequest:
    return SampleRequest(
        prompt_token_ids=item.prompt_token_ids,
        max_tokens=request.max_tokens,
        seed=fresh_seed() if item.seed is None else item.seed,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=max(request.top_k, 0),
        stop_token_ids=tuple(request.stop_token_ids),
        stop=tuple(request.stop),
    )
