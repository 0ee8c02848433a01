"""Asynchronous clients of the services.

    async with AsyncRewardClient("http://127.0.0.1:8002", key=…) as reward:
        score = await reward.score(RewardItem(question=…, answer=…, explanation=…))

Single calls made at the same time travel together: write one `await` an item, the client batches.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

import httpx

from rlt_client._batching import Batcher
from rlt_client._service import ServiceClient
from rlt_client._teacher import AsyncTeacherClient
from rlt_client.bearer import Key
from rlt_client.errors import DeadlineExceeded, InvalidRequest
from rlt_client.schemas.common import FieldError, FormatRef, ModelRef, Reply
from rlt_client.schemas.models import LoadedModelReply, LoadModel, ModelList, Role
from rlt_client.schemas.reward import (
    Detail,
    Preset,
    PresetList,
    Priority,
    ResolvedSpec,
    RewardItem,
    RewardRequest,
    RewardResponse,
    Score,
    SpecRequest,
)

__all__ = ["AsyncRewardClient", "AsyncTeacherClient", "ScoredItem", "ServiceClient"]

CHARACTERS_PER_TOKEN = 3  # a careful guess: batches are cut by it, nothing is refused


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """A score and what computed it."""

    score: Score
    student: ModelRef
    teacher: ModelRef | None
    format: FormatRef
    spec: ResolvedSpec
    dtype: str | None = None
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class _RewardLane:
    """Items may share a request when everything beside the items is equal."""

    spec: str
    format: str | None
    student: str | None
    teacher: str | None
    teacher_revision: str | None
    detail: Detail
    priority: Priority


class AsyncRewardClient(ServiceClient):
    """Scores explanations (`POST /reward`).

    Args:
        window: seconds that a single call waits for company.
        max_items: items a request at most.
        max_tokens: tokens a request at most, estimated from the texts.
        concurrency: requests under way at most.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: Key | None = None,
        deadline: float = 600.0,
        patience: float | None = None,
        max_connections: int = 256,
        transport: httpx.AsyncBaseTransport | None = None,
        window: float = 0.005,
        max_items: int = 64,
        max_tokens: int = 262_144,
        concurrency: int = 16,
    ) -> None:
        super().__init__(
            base_url,
            key=key,
            deadline=deadline,
            patience=patience,
            max_connections=max_connections,
            transport=transport,
        )
        self._batcher = Batcher[_RewardLane, RewardItem, ScoredItem](
            self._send, window=window, max_items=max_items, max_cost=max_tokens, concurrency=concurrency
        )

    async def aclose(self) -> None:
        await self._batcher.close()
        await super().aclose()

    async def score(
        self,
        item: RewardItem,
        *,
        spec: Preset | SpecRequest = Preset.rlt,
        format: str | None = None,
        student: str | None = None,
        teacher: str | None = None,
        teacher_revision: str | None = None,
        detail: Detail = Detail.components,
        priority: Priority = Priority.normal,
        group: Hashable = None,
        deadline: float | None = None,
    ) -> Score:
        """One item; calls made at the same time are sent together. Its own failure is in `Score.error`, not raised.

        Args:
            group: items of one group share a request; the question and its answer if left out.
            deadline: seconds that *this* caller waits; the client's own if left out.

        Raises:
            APIError: the request as a whole was refused (wrong key, unknown format, …).
            DeadlineExceeded, TransportError, ProtocolError
        """
        scored = await self.score_item(
            item,
            spec=spec,
            format=format,
            student=student,
            teacher=teacher,
            teacher_revision=teacher_revision,
            detail=detail,
            priority=priority,
            group=group,
            deadline=deadline,
        )
        return scored.score

    async def score_item(
        self,
        item: RewardItem,
        *,
        spec: Preset | SpecRequest = Preset.rlt,
        format: str | None = None,
        student: str | None = None,
        teacher: str | None = None,
        teacher_revision: str | None = None,
        detail: Detail = Detail.components,
        priority: Priority = Priority.normal,
        group: Hashable = None,
        deadline: float | None = None,
    ) -> ScoredItem:
        """As `score`, with what computed it: the revisions of the models, the format, the resolved reward."""
        _refuse_non_finite([item])
        resolved = spec if isinstance(spec, SpecRequest) else SpecRequest(preset=spec)
        lane = _RewardLane(
            resolved.model_dump_json(exclude_none=True), format, student, teacher, teacher_revision, detail, priority
        )
        group = (item.question, item.answer) if group is None else group
        try:
            async with asyncio.timeout(deadline):
                scored = await self._batcher.submit(lane, group, item, _tokens(item))
        except TimeoutError as error:
            raise DeadlineExceeded(f"POST /reward: no score within {deadline:g} s") from error
        return replace(scored, score=scored.score.model_copy(update={"index": 0}))

    async def score_all(self, request: RewardRequest, *, deadline: float | None = None) -> RewardResponse:
        """One request as it is, with everything that the server says of it. Not batched, not cut."""
        _refuse_non_finite(request.items)
        return await self._http.request("POST", "/reward", body=request, reply=RewardResponse, deadline=deadline)

    async def presets(self) -> PresetList:
        """The rewards that the default models can give, with their coefficients."""
        return await self._http.request("GET", "/presets", reply=PresetList)

    async def models(self) -> ModelList:
        """The students and hosted teachers that are served, and which of each kind are the defaults."""
        return await self._http.request("GET", "/models", reply=ModelList)

    async def load_model(self, request: LoadModel, *, deadline: float | None = None) -> LoadedModelReply:
        """Load a version of a model and switch to it under its name; returns when it is served. Needs scope `admin`.

        Asked again with the same name and contents it does nothing, so that it may be repeated after any failure.

        Raises:
            InvalidRequest: unusable_model, path_not_allowed.
            Conflict: revision_mismatch, insufficient_memory.
            APIError, DeadlineExceeded, TransportError, ProtocolError
        """
        return await self._http.request("POST", "/models", body=request, reply=LoadedModelReply, deadline=deadline)

    async def unload_model(self, role: Role, name: str) -> None:
        """Serve it no more; not for a default. Needs scope `admin`.

        Raises:
            NotFound: unknown_student, unknown_teacher.
            Conflict: model_is_default, model_is_base.
        """
        await self._http.request("DELETE", f"/models/{Role(role)}/{quote(name)}", reply=Reply)

    async def _send(self, lane: _RewardLane, items: list[RewardItem]) -> list[ScoredItem]:
        request = RewardRequest(
            items=items,
            spec=SpecRequest.model_validate_json(lane.spec),
            format=lane.format,
            student=lane.student,
            teacher=lane.teacher,
            teacher_revision=lane.teacher_revision,
            detail=lane.detail,
            priority=lane.priority,
        )
        reply = await self.score_all(request)
        source = (reply.student, reply.teacher, reply.format, reply.spec, reply.dtype, reply.engine)
        return [ScoredItem(score, *source) for score in reply.items]


def _tokens(item: RewardItem) -> int:
    texts = (item.question, item.answer, item.system, item.completion, item.explanation)
    characters = sum(len(text) for text in texts if text)
    return characters // CHARACTERS_PER_TOKEN + (len(item.teacher.token_ids) if item.teacher else 0) + 1


def _refuse_non_finite(items: Sequence[RewardItem]) -> None:
    """JSON has no NaN: caught here, one bad item does not spoil the batch that it would travel in."""
    for index, item in enumerate(items):
        if item.teacher and not all(map(math.isfinite, item.teacher.logprobs)):
            pointer = f"/items/{index}/teacher/logprobs"
            raise InvalidRequest("not a number", errors=[FieldError(pointer=pointer, detail="must be finite")])
