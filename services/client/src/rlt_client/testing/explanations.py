"""Explanations without models: whole, event by event, and many problems at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from rlt_client.errors import APIError
from rlt_client.formats import Format
from rlt_client.schemas.common import GenStatus, ModelRef, Timing
from rlt_client.schemas.explain import (
    BatchItem,
    BatchProblem,
    Delta,
    Done,
    Dropped,
    ExplainBatchRequest,
    ExplainBatchResponse,
    ExplainEvent,
    ExplainOptions,
    ExplainRequest,
    ExplainResponse,
    Explanation,
    ExplanationUsage,
    Finished,
    Keep,
    PolicySummary,
    Scored,
    Started,
)
from rlt_client.schemas.reward import RewardItem, Score, TeacherTokens

__all__ = ["ENGINE", "NO_TIME", "FakeTeacher"]

NO_TIME: Final = Timing(queue_ms=0, engine_ms=0, overhead_ms=0)
NAME: Final = "fake-teacher"
ENGINE: Final = "fake 1.0"
_PIECE: Final = re.compile(r"\s*\S+|\s+")


class FakeTeacher:
    """Args:
    text: of sample `index` of a request.
    score: of one item.
    """

    def __init__(
        self, text: Callable[[ExplainRequest, int], str], score: Callable[[int, RewardItem], Score], format: Format
    ) -> None:
        self._text = text
        self._score = score
        self._format = format

    def explain(self, request: ExplainRequest) -> ExplainResponse:
        return self._response(request, self._samples(request))

    def events(self, request: ExplainRequest) -> Iterator[ExplainEvent]:
        """One sample after the other, word by word."""
        samples = self._samples(request)
        yield Started(
            samples=len(samples),
            policies=_policies(request),
            format=self._format.ref,
            seed=request.seed or 0,
            prompt_tokens=1,
        )
        for sample in samples:
            for piece in _PIECE.findall(sample.text or ""):
                yield Delta(index=sample.index, text=piece, tokens=len(piece.encode()))
            yield Finished(explanation=sample.model_copy(update={"score": None}))
            if sample.score is not None:
                yield Scored(index=sample.index, score=sample.score)
        yield Done(response=self._response(request, samples))

    def batch(self, request: ExplainBatchRequest) -> ExplainBatchResponse:
        items = [self._item(request, index, problem) for index, problem in enumerate(request.problems)]
        done = [item.result for item in items if item.result is not None]
        return ExplainBatchResponse(
            items=items,
            policy=_policies(request)[0],
            format=self._format.ref,
            succeeded=len(done),
            failed=len(items) - len(done),
            usage=_usage(result.usage for result in done),
            timing=NO_TIME,
        )

    def _item(self, request: ExplainBatchRequest, index: int, problem: BatchProblem) -> BatchItem:
        options = request.model_dump(exclude={"problems"}, exclude_unset=True)
        seed = request.seed if problem.seed is None else problem.seed
        own = ExplainRequest(**options | {"question": problem.question, "answer": problem.answer, "seed": seed})
        try:
            return BatchItem(id=problem.id, index=index, result=self.explain(own))
        except APIError as error:
            return BatchItem(id=problem.id, index=index, error=error.problem())

    def _samples(self, request: ExplainRequest) -> list[Explanation]:
        policies = [policy for policy in _policies(request) for _ in range(request.n)]
        return [self._sample(request, index, policy) for index, policy in enumerate(policies)]

    def _sample(self, request: ExplainRequest, index: int, policy: ModelRef) -> Explanation:
        text = self._text(request, index)
        ids = list(text.encode())
        tokens = TeacherTokens(token_ids=ids, logprobs=[-0.1] * len(ids), temperature=request.temperature)
        item = RewardItem(question=request.question, answer=request.answer, explanation=text)
        return Explanation(
            index=index,
            text=text,
            completion=text + self._format.teacher.close,
            gen_status=GenStatus.complete,
            finish_reason="stop",
            seed=request.seed,
            policy=policy,
            usage=ExplanationUsage(prompt_tokens=1, completion_tokens=len(ids)),
            score=self._score(index, item) if request.score else None,
            teacher=tokens if request.return_tokens else None,
        )

    def _response(self, request: ExplainRequest, samples: list[Explanation]) -> ExplainResponse:
        ranked = sorted(samples, key=_place)
        best = next((each.index for each in ranked if _reward(each) is not None), None)
        good = [each for each in ranked if _is_good(each, request.min_reward)]
        kept = [each for each in good if request.keep is Keep.all or best is None or each.index == best]
        return ExplainResponse(
            explanations=kept,
            best=best if any(each.index == best for each in kept) else None,
            policy=_policies(request)[0],
            engine=ENGINE,
            format=self._format.ref,
            seed=request.seed,
            dropped=Dropped(min_reward=len(ranked) - len(good), not_best=len(good) - len(kept)),
            comparison=_comparison(request, samples) if request.policies else None,
            usage=_usage(sample.usage for sample in samples),
            timing=NO_TIME,
        )


def _policies(request: ExplainOptions) -> list[ModelRef]:
    names = request.policies or [request.policy or NAME]
    return [ModelRef(name=name, revision="sha256:0") for name in names]


def _reward(explanation: Explanation) -> float | None:
    return None if explanation.score is None else explanation.score.reward


def _place(explanation: Explanation) -> tuple[bool, float, int]:
    reward = _reward(explanation)
    return reward is None, -(reward or 0.0), explanation.index


def _is_good(explanation: Explanation, least: float | None) -> bool:
    reward = _reward(explanation)
    return least is None or (reward is not None and reward >= least)


def _usage(each: Iterable[ExplanationUsage]) -> ExplanationUsage:
    used = list(each)
    prompts = max((usage.prompt_tokens for usage in used), default=0)
    return ExplanationUsage(prompt_tokens=prompts, completion_tokens=sum(usage.completion_tokens for usage in used))


def _comparison(request: ExplainRequest, samples: list[Explanation]) -> list[PolicySummary]:
    groups = [samples[start : start + request.n] for start in range(0, len(samples), request.n)]
    winners = [max(same, key=lambda each: _reward(each) or float("-inf")).index for same in zip(*groups, strict=True)]
    return [_summary(group, winners) for group in groups]


def _summary(group: list[Explanation], winners: list[int]) -> PolicySummary:
    policy = group[0].policy
    assert policy is not None
    scored = {each.index: reward for each in group if (reward := _reward(each)) is not None}
    return PolicySummary(
        policy=policy,
        samples=len(group),
        complete=len(group),
        scored=len(scored),
        leaking=0,
        mean_reward=sum(scored.values()) / len(scored) if scored else None,
        best_reward=max(scored.values(), default=None),
        best=max(scored, key=lambda index: scored[index], default=None),
        wins=sum(index in winners for index in scored),
    )
