"""Scores requests: admit, plan, prepare, run, assemble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from typing import Final

from rlt_client.errors import ItemError, PayloadTooLarge
from rlt_client.schemas.common import ScoreStatus
from rlt_client.schemas.reward import (
    Detail,
    KLSource,
    Preset,
    Priority,
    RewardItem,
    RewardRequest,
    RewardResponse,
    Score,
    ScoreUsage,
    SpecRequest,
)
from rlt_reward_server.lanes import PassResult, PassScheduler, PassWork, works_of
from rlt_reward_server.metrics import RewardMetrics
from rlt_reward_server.models import LoadedModel
from rlt_reward_server.outcome import Call, Outcome, failed, item_key, pass_key, scored, weight
from rlt_reward_server.prepare import Plan, Prepared, Reader, Slot
from rlt_reward_server.prepare import outcome as prepared_or_error
from rlt_reward_server.probe import probe_item
from rlt_reward_server.registry import Registry, Selection
from rlt_reward_server.reward import PRESETS
from rlt_reward_server.scheduler import Admission, Done, Shared, batch_cost
from rlt_reward_server.settings import Settings
from rlt_reward_server.specs import Means, resolve
from rlt_service import timing

__all__ = ["RewardService"]

Ready = tuple[Prepared | ItemError, dict[Slot, PassWork]]

SHORT_CHARACTERS: Final = 8192  # tokenised in a millisecond or two; a thread's hand-over takes as long when it is busy
SHORT_TOKENS: Final = 2048  # the same for what is made of the log-probs


class RewardService:
    def __init__(
        self, settings: Settings, registry: Registry, scheduler: PassScheduler, metrics: RewardMetrics
    ) -> None:
        self._settings = settings
        self.registry = registry
        self.scheduler = scheduler
        self._metrics = metrics
        self._admission = Admission(
            max_passes=settings.max_queue,
            max_tokens=settings.max_queue_tokens,
            retry_after=scheduler.retry_after,
            on_refused=metrics.refused,
        )
        self._scores: Shared[bytes, Outcome] = Shared(
            seconds=settings.cache_s,
            max_weight=settings.cache_scores,
            weigh=weight,
            on_hit=partial(metrics.cache_hit, "scores"),
        )
        self._baselines: Shared[bytes, Done[PassResult]] = Shared(
            seconds=settings.cache_s,
            max_weight=settings.cache_scores,
            weigh=_baseline_weight,
            on_hit=partial(metrics.cache_hit, "baselines"),
        )

    @property
    def default_preset(self) -> Preset:
        return self._settings.preset

    async def score(self, request: RewardRequest, *, owner: str = "local") -> RewardResponse:
        """The reward of every item. What is wrong with one item is that item's error.

        Args:
            owner: whose request it is; the same item sent again by the same owner is not computed again for a while.

        Raises:
            NotFound: unknown_student, unknown_teacher, unknown_format.
            Conflict: stale_teacher.
            InvalidRequest: unsupported_kl, tokenizers_differ, format_unavailable.
            PayloadTooLarge: too_many_items, too_many_tokens.
            Overloaded, Unavailable: try again.
        """
        began = time.perf_counter()
        self._check_size(request)
        wanted = {"student": request.student, "teacher": request.teacher, "teacher_revision": request.teacher_revision}
        with self.registry.using(**wanted) as selection:
            plan = self._plan(request, selection)
            call = Call.of(selection, plan, owner=owner, urgent=request.priority is Priority.interactive)
            outcomes = await self._outcomes(call, request.items)
        return self._response(call, request.items, outcomes, began)

    def _check_size(self, request: RewardRequest) -> None:
        if len(request.items) > self._settings.max_items:
            self._metrics.refused("too_many_items")
            detail = f"{len(request.items)} items, at most {self._settings.max_items} in one request"
            raise PayloadTooLarge(detail, type="too_many_items")

    def _plan(self, request: RewardRequest, selection: Selection) -> Plan:
        asked = request.spec if "spec" in request.model_fields_set else self._settings.preset
        spec = resolve(asked if isinstance(asked, SpecRequest) else SpecRequest(preset=asked), Means.of(selection))
        return Plan(
            format=selection.catalog.get(request.format),
            spec=spec,
            reward=PRESETS[spec.preset],
            detail=request.detail,
            student=_reader(selection.student),
            teacher=_reader(selection.teacher) if selection.teacher else None,
            shared_vocabulary=selection.shared_vocabulary,
            teacher_codec=selection.teacher_codec,
        )

    async def _outcomes(self, call: Call, items: Sequence[RewardItem]) -> list[Outcome]:
        """What is kept or under way is not computed again. Room is asked for before any text is read, and then again
        for the tokens that were found in it."""
        with self._admission.enter(len(items)) as ticket, self._scores.session() as session:
            keys = [item_key(call, item) for item in items]
            new = {key: item for key, item in zip(keys, items, strict=True) if not session.join(key)}
            ready = await _prepare(call, list(new.values()))
            works = [work for _, found in ready for work in found.values()]
            ticket.weigh(len(works) + session.joined, batch_cost(works))  # who began what is joined may leave it to us
            for key, one in zip(new, ready, strict=True):
                session.start(key, partial(self._outcome, call, one))
            return await session.results(keys)

    async def _outcome(self, call: Call, ready: Ready) -> Outcome:
        prepared, works = ready
        if isinstance(prepared, ItemError):
            return failed(prepared)
        done = await self._run(call, works)
        if sum(work.cost for work in works.values()) <= SHORT_TOKENS:
            return scored(call.plan, prepared, done)
        return await asyncio.to_thread(scored, call.plan, prepared, done)

    async def _run(self, call: Call, works: dict[Slot, PassWork]) -> dict[Slot, Done[PassResult]]:
        """What the student does without an explanation is the same for all explanations of a question."""
        if Slot.baseline not in works:
            return await self._submit(works)
        own: dict[Slot, PassWork] = {slot: work for slot, work in works.items() if slot is not Slot.baseline}
        with self._baselines.session() as session:
            key = pass_key(call, works[Slot.baseline].item)
            session.start(key, partial(self._submit_one, works[Slot.baseline]))
            done = await self._submit(own)
            [baseline] = await session.results([key])
        return {**done, Slot.baseline: baseline}

    async def _submit(self, works: Mapping[Slot, PassWork]) -> dict[Slot, Done[PassResult]]:
        return dict(zip(works, await self.scheduler.submit([*works.values()]), strict=True))

    async def _submit_one(self, work: PassWork) -> Done[PassResult]:
        [done] = await self.scheduler.submit([work])
        return done

    def _response(
        self, call: Call, items: Sequence[RewardItem], outcomes: Sequence[Outcome], began: float
    ) -> RewardResponse:
        scores = [
            outcome.score.model_copy(update={"id": item.id, "index": index})
            for index, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
        ]
        hosted = any(score.kl_source is KLSource.hosted for score in scores)
        moments = [_since(began, *moments) for outcome in outcomes for moments in outcome.moments]
        spent = timing.split(began, time.perf_counter(), moments)
        self._metrics.request(scores, spent)
        teacher = call.selection.teacher
        return RewardResponse(
            items=scores,
            student=call.selection.student.ref,
            dtype=self._dtype(call.selection.student),
            engine=_engine(),
            teacher=teacher.ref if teacher and hosted else None,
            format=call.plan.format.ref,
            spec=call.plan.spec,
            usage=_usage(scores, outcomes),
            timing=spent,
        )

    def _dtype(self, model: LoadedModel) -> str:
        stored = ", fp8 weights" if self._settings.weights == "fp8" else ""
        return f"{model.scorer.dtype}{stored}"

    async def probe(self) -> None:
        """Score the default format's probe through every model. Raises `ItemError` where that does not work."""
        with self.registry.using() as selection:
            preset = _probed(selection)
            item = probe_item(selection.catalog.get(None))
            plan = self._plan(RewardRequest(items=[item], spec=preset, detail=Detail.none), selection)
            call = Call.of(selection, plan, owner="", urgent=True)
            outcome = await self._outcome(call, _ready(call, item))
        outcome.score.value()


@cache
def _engine() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))


def _probed(selection: Selection) -> Preset:
    """A preset that runs through every model."""
    if selection.teacher is None:
        return Preset.ss_only
    return Preset.rlt if selection.shared_vocabulary else Preset.rlt_segments


def _reader(model: LoadedModel) -> Reader:
    return Reader(model.codec, model.scorer.max_length, model.scorer.vocab_size)


async def _prepare(call: Call, items: Sequence[RewardItem]) -> list[Ready]:
    if sum(map(_characters, items)) <= SHORT_CHARACTERS:
        return [_ready(call, item) for item in items]
    return await asyncio.to_thread(lambda: [_ready(call, item) for item in items])


def _ready(call: Call, item: RewardItem) -> Ready:
    prepared = prepared_or_error(call.plan, item)
    if isinstance(prepared, ItemError):
        return prepared, {}
    return prepared, works_of(call.selection, prepared, urgent=call.urgent)


def _characters(item: RewardItem) -> int:
    texts = (item.question, item.answer, item.system, item.completion, item.explanation)
    ids = item.teacher.token_ids if item.teacher else ()
    return sum(len(text) for text in texts if text) + 4 * len(ids)


def _baseline_weight(done: Done[PassResult]) -> int | None:
    """As a score's: a float takes 32 bytes."""
    return None if isinstance(done.result, ItemError) else 1


def _since(began: float, *moments: float) -> tuple[float, float, float]:
    """What happened before this request came took none of its time."""
    enqueued, started, finished = (max(began, moment) for moment in moments)
    return enqueued, started, finished


def _usage(scores: Sequence[Score], outcomes: Sequence[Outcome]) -> ScoreUsage:
    return ScoreUsage(
        items=len(scores),
        scored=sum(score.status is ScoreStatus.scored for score in scores),
        student_tokens=sum(outcome.student_tokens for outcome in outcomes),
        teacher_tokens=sum(outcome.teacher_tokens for outcome in outcomes),
    )
