"""Scores requests: plan, prepare, run, assemble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rlt_client.errors import Conflict, InvalidRequest, ItemError, NotFound, PayloadTooLarge
from rlt_client.schemas.common import FieldError, ScoreStatus
from rlt_client.schemas.reward import (
    Detail,
    KLSource,
    Preset,
    ResolvedSpec,
    RewardItem,
    RewardRequest,
    RewardResponse,
    Score,
    ScoreUsage,
    SpecRequest,
)
from rlt_reward_server import assemble
from rlt_reward_server.batcher import Batcher, Done, Work
from rlt_reward_server.catalog import Catalog
from rlt_reward_server.metrics import RewardMetrics
from rlt_reward_server.models import LoadedModel, Models
from rlt_reward_server.passes import Pass
from rlt_reward_server.prepare import Plan, Prepared, Reader, outcome
from rlt_reward_server.probe import probe_item
from rlt_reward_server.reward import ESTIMATORS, PRESETS
from rlt_reward_server.settings import Settings
from rlt_service import timing

__all__ = ["PassBatcher", "RewardService", "Role", "run_on"]


class Role(StrEnum):
    student = "student"
    teacher = "teacher"


PassResult = list[float] | ItemError
PassBatcher = Batcher[Role, Pass, PassResult]


@dataclass(frozen=True, slots=True)
class _Measured:
    """One prepared item with what its passes gave."""

    prepared: Prepared
    student: Done[PassResult]
    teacher: Done[PassResult] | None


class RewardService:
    def __init__(
        self, settings: Settings, models: Models, catalog: Catalog, batcher: PassBatcher, metrics: RewardMetrics
    ) -> None:
        self._settings = settings
        self.models = models
        self.catalog = catalog
        self.batcher = batcher
        self._metrics = metrics

    @property
    def default_preset(self) -> Preset:
        return self._settings.preset

    async def score(self, request: RewardRequest) -> RewardResponse:
        """The reward of every item. What is wrong with one item is that item's error.

        Raises:
            NotFound: unknown_student, unknown_format.
            Conflict: stale_teacher.
            InvalidRequest: unsupported_kl, format_unavailable.
            PayloadTooLarge: too_many_items.
            Overloaded, Unavailable: try again.
        """
        began = time.perf_counter()
        plan = self._plan(request)
        prepared = await asyncio.to_thread(lambda: [outcome(plan, item) for item in request.items])
        measured = await self._measure(prepared)
        scores = await asyncio.to_thread(_scores, plan, request.items, measured)
        return self._response(plan, scores, [m for m in measured if isinstance(m, _Measured)], began)

    def _plan(self, request: RewardRequest) -> Plan:
        if len(request.items) > self._settings.max_items:
            detail = f"{len(request.items)} items, at most {self._settings.max_items} in one request"
            raise PayloadTooLarge(detail, type="too_many_items")
        self._check_models(request)
        spec = self._spec(request)
        return Plan(
            format=self.catalog.get(request.format),
            spec=spec,
            reward=PRESETS[spec.preset],
            detail=request.detail,
            student=_reader(self.models.student),
            teacher=_reader(self.models.teacher) if self.models.teacher else None,
        )

    def _check_models(self, request: RewardRequest) -> None:
        student = self.models.student.ref.name
        if request.student not in (None, student):
            detail = f"no such student; there is {student}"
            raise NotFound(detail, type="unknown_student", errors=[FieldError(pointer="/student", detail=detail)])
        wanted, hosted = request.teacher_revision, self.models.teacher
        if wanted is not None and (hosted is None or hosted.ref.revision != wanted):
            there = f"the hosted teacher is {hosted.ref.revision}" if hosted else "no teacher is hosted"
            errors = [FieldError(pointer="/teacher_revision", detail=there)]
            raise Conflict(f"{there}, not {wanted}", type="stale_teacher", errors=errors)

    def _spec(self, request: RewardRequest) -> ResolvedSpec:
        asked = request.spec if "spec" in request.model_fields_set else self._settings.preset
        spec = asked if isinstance(asked, SpecRequest) else SpecRequest(preset=asked)
        if spec.kl is not None and spec.kl not in ESTIMATORS:
            detail = f"this server computes {', '.join(ESTIMATORS)}, not {spec.kl}"
            raise InvalidRequest(detail, type="unsupported_kl", errors=[FieldError(pointer="/spec/kl", detail=detail)])
        return PRESETS[spec.preset].resolve(spec)

    async def _measure(self, prepared: Sequence[Prepared | ItemError]) -> list[_Measured | ItemError]:
        works: list[Work[Role, Pass]] = []
        for item in prepared:
            if isinstance(item, Prepared):
                works.append(_work(Role.student, item.student))
                if item.teacher is not None:
                    works.append(_work(Role.teacher, item.teacher))
        results = iter(await self.batcher.submit(works))
        return [
            item
            if isinstance(item, ItemError)
            else _Measured(item, next(results), next(results) if item.teacher is not None else None)
            for item in prepared
        ]

    def _response(self, plan: Plan, scores: list[Score], measured: list[_Measured], began: float) -> RewardResponse:
        teacher = self.models.teacher if any(m.prepared.kl_source is KLSource.hosted for m in measured) else None
        spent = timing.split(began, time.perf_counter(), [_moments(done) for m in measured for done in _passes(m)])
        self._metrics.request(scores, spent)
        return RewardResponse(
            items=scores,
            student=self.models.student.ref,
            teacher=teacher.ref if teacher else None,
            format=plan.format.ref,
            spec=plan.spec,
            usage=_usage(scores, measured),
            timing=spent,
        )

    async def probe(self) -> None:
        """Score the default format's probe through every model. Raises `ItemError` where that does not work."""
        preset = Preset.rlt if self.models.teacher else Preset.ss_only
        item = probe_item(self.catalog.get(None))
        plan = self._plan(RewardRequest(items=[item], spec=preset, detail=Detail.none))
        [measured] = await self._measure([outcome(plan, item)])
        _score(plan, item, 0, measured).value()


def run_on(models: Models) -> Callable[[Role, list[Pass]], Sequence[PassResult]]:
    """What the batcher's thread calls."""
    scorers = {Role.student: models.student.scorer}
    if models.teacher is not None:
        scorers[Role.teacher] = models.teacher.scorer
    return lambda role, passes: scorers[role].log_probs(passes)


def _reader(model: LoadedModel) -> Reader:
    return Reader(model.codec, model.scorer.max_length, model.scorer.vocab_size)


def _work(role: Role, asked: Pass) -> Work[Role, Pass]:
    return Work(role, asked, asked.length)


def _passes(measured: _Measured) -> list[Done[PassResult]]:
    return [measured.student, *([measured.teacher] if measured.teacher else [])]


def _moments(done: Done[PassResult]) -> tuple[float, float, float]:
    return done.enqueued, done.started, done.finished


def _scores(plan: Plan, items: Sequence[RewardItem], measured: Sequence[_Measured | ItemError]) -> list[Score]:
    pairs = zip(items, measured, strict=True)
    return [_score(plan, item, index, found) for index, (item, found) in enumerate(pairs)]


def _score(plan: Plan, item: RewardItem, index: int, measured: _Measured | ItemError) -> Score:
    try:
        if isinstance(measured, ItemError):
            raise measured
        student = _unwrap(measured.student)
        teacher = _unwrap(measured.teacher) if measured.teacher else []
        return assemble.scored(plan, measured.prepared, student, teacher, index, item.id)
    except ItemError as error:
        return assemble.failed(index, item.id, error)


def _unwrap(done: Done[PassResult]) -> list[float]:
    if isinstance(done.result, ItemError):
        raise done.result
    return done.result


def _usage(scores: list[Score], measured: list[_Measured]) -> ScoreUsage:
    prepared = [m.prepared for m in measured]
    return ScoreUsage(
        items=len(scores),
        scored=sum(score.status is ScoreStatus.scored for score in scores),
        student_tokens=sum(len(p.student.ids) for p in prepared),
        teacher_tokens=sum(len(p.teacher.ids) for p in prepared if p.teacher),
    )
