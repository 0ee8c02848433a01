"""Asynchronous clients of the services.

    async with AsyncRewardClient("http://127.0.0.1:8002", key=…) as reward:
        score = await reward.score(RewardItem(question=…, answer=…, explanation=…))

Single calls made at the same time travel together: write one `await` an item, the client batches.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Self, get_args
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from rlt_client._batching import Batcher
from rlt_client._events import ServerSentEvent, read_events
from rlt_client._http import HTTP
from rlt_client.errors import DeadlineExceeded, InvalidRequest, ProtocolError, TransportError, error_from_problem
from rlt_client.schemas.common import FieldError, FormatRef, ModelRef, Reply
from rlt_client.schemas.explain import (
    Done,
    ExplainBatchRequest,
    ExplainBatchResponse,
    ExplainEvent,
    ExplainRequest,
    ExplainResponse,
    Failed,
)
from rlt_client.schemas.generate import GenerateRequest, GenerateResponse
from rlt_client.schemas.models import LoadedModelReply, LoadModel, ModelList, Role
from rlt_client.schemas.policies import (
    ActivatePolicy,
    LoadedPolicy,
    LoadPolicy,
    PolicyInfo,
    PolicyList,
    RollbackPolicy,
    UnloadPolicy,
)
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

IDLE: Final = 60.0  # a streamed reply pings every 15 s: four missed ones, and nobody is there any more
CHARACTERS_PER_TOKEN = 3  # a careful guess: batches are cut by it, nothing is refused


class ServiceClient:
    """What all clients share. Close it, or use it as `async with`.

    Args:
        base_url: where the service is, for example `http://127.0.0.1:8002`.
        key: sent as a bearer token.
        deadline: seconds for one call, with its retries of broken connections and of 429, 502, 503 and 504.
        patience: seconds of it during which those are retried, for callers that would rather know; all if left out.
        max_connections: open connections at most.
        transport: replaces the network, for tests (`rlt_client.testing`).
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        deadline: float = 600.0,
        patience: float | None = None,
        max_connections: int = 256,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = HTTP(
            base_url,
            key=key,
            deadline=deadline,
            patience=patience,
            max_connections=max_connections,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def ready(self, *, deadline: float = 10.0) -> None:
        """Ask once whether the service can do its work now.

        Raises:
            Unavailable: it says that it cannot, and why.
            DeadlineExceeded, TransportError, ProtocolError
        """
        await self._http.request("GET", "/readyz", reply=Reply, deadline=deadline, retry=False)


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """A score and what computed it."""

    score: Score
    student: ModelRef
    teacher: ModelRef | None
    format: FormatRef
    spec: ResolvedSpec


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
        key: str | None = None,
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
        source = (reply.student, reply.teacher, reply.format, reply.spec)
        return [ScoredItem(score, *source) for score in reply.items]


class AsyncTeacherClient(ServiceClient):
    """Asks a teacher for explanations (`POST /explain`) and, for trainers, for tokens (`POST /generate`), and publishes
    versions of it (`/policies`)."""

    async def explain(self, request: ExplainRequest, *, deadline: float | None = None) -> ExplainResponse:
        """Sample `request.n` explanations of one question and its answer.

        Raises:
            APIError, DeadlineExceeded, TransportError, ProtocolError
        """
        whole = request.model_copy(update={"stream": False})
        return await self._http.request("POST", "/explain", body=whole, reply=ExplainResponse, deadline=deadline)

    async def explain_stream(
        self, request: ExplainRequest, *, deadline: float | None = None, idle: float = IDLE
    ) -> AsyncGenerator[ExplainEvent, None]:
        """The same as it happens: `Started`, then events of every sample, at the end `Done` with the whole reply.

        Refusals and broken connections are retried until the reply begins, never later. Events that this version does
        not know are left out. Closing the iterator closes the connection, and the server stops the work:

            async with aclosing(teacher.explain_stream(request)) as events:
                async for event in events: …

        Args:
            deadline: seconds for the whole of it.
            idle: seconds without a sign of life (the server sends one every 15 s) after which it counts as gone.

        Raises:
            APIError: refused before the first event, or failed after it.
            DeadlineExceeded
            TransportError: not reached, or the stream broke off before its last event.
            ProtocolError
        """
        seconds = self._http.deadline if deadline is None else deadline
        until = time.monotonic() + seconds
        asked = request.model_copy(update={"stream": True})
        async with (
            self._http.stream("POST", "/explain", body=asked, deadline=seconds, retry=True) as response,
            aclosing(read_events(response, until=until, idle=idle)) as events,
        ):
            async for each in events:
                if each.name not in _EVENT_NAMES:
                    continue
                event = _explain_event(each)
                if isinstance(event, Failed):
                    raise error_from_problem(event.problem)
                yield event
                if isinstance(event, Done):
                    return
        raise TransportError("POST /explain: the stream broke off before its last event")

    async def explain_batch(
        self, request: ExplainBatchRequest, *, deadline: float | None = None
    ) -> ExplainBatchResponse:
        """Explain many problems in one call. What is wrong with one problem is its own `error`, not raised.

        Raises:
            APIError, DeadlineExceeded, TransportError, ProtocolError
        """
        return await self._http.request(
            "POST", "/explain/batch", body=request, reply=ExplainBatchResponse, deadline=deadline
        )

    async def generate(self, request: GenerateRequest, *, deadline: float | None = None) -> GenerateResponse:
        """Continue prompts of token ids, one sample each.

        Raises:
            APIError, DeadlineExceeded, TransportError, ProtocolError
        """
        return await self._http.request("POST", "/generate", body=request, reply=GenerateResponse, deadline=deadline)

    async def policies(self) -> PolicyList:
        """Every version of the teacher that is known, which is active, where a rollback goes, and the engines."""
        return await self._http.request("GET", "/policies", reply=PolicyList)

    async def load_policy(self, request: LoadPolicy, *, deadline: float | None = None) -> LoadedPolicy:
        """Publish a version; returns when every engine that is up has it. Needs scope `admin`.

        Asked again with the same name and contents it does nothing, so that it may be repeated after any failure. The
        work goes on after a deadline.

        Raises:
            InvalidRequest: unusable_policy, path_not_allowed.
            Conflict: revision_mismatch; policy_busy: requests kept the old weights for too long.
            APIError, DeadlineExceeded, TransportError, ProtocolError
        """
        return await self._http.request("POST", "/policies", body=request, reply=LoadedPolicy, deadline=deadline)

    async def activate_policy(
        self, name: str, revision: str | None = None, *, deadline: float | None = None
    ) -> PolicyInfo:
        """Make a known version what requests get that name none. Needs scope `admin`.

        Args:
            revision: of several versions of one name; the newest if left out.

        Raises:
            NotFound: policy_not_found.
            Conflict: revision_mismatch: its folder has other contents by now; policy_busy.
            APIError, DeadlineExceeded, TransportError, ProtocolError
        """
        body = ActivatePolicy(revision=revision)
        return await self._http.request(
            "POST", _policy(name, "/activate"), body=body, reply=PolicyInfo, deadline=deadline
        )

    async def rollback_policy(
        self, *, expected_revision: str | None = None, deadline: float | None = None
    ) -> PolicyInfo:
        """Make active what was active before, and return it. Needs scope `admin`.

        Args:
            expected_revision: what is active now. Without it a call whose reply was lost is not repeated: a second one
                would go further back.

        Raises:
            Conflict: nothing_to_roll_back, revision_mismatch, policy_busy.
            APIError, DeadlineExceeded, TransportError, ProtocolError
        """
        body = RollbackPolicy(expected_revision=expected_revision)
        retry = expected_revision is not None
        return await self._http.request(
            "POST", "/policies/rollback", body=body, reply=PolicyInfo, deadline=deadline, retry=retry
        )

    async def unload_policy(self, name: str, revision: str | None = None) -> PolicyInfo:
        """Take an adapter out of the engines when its last request has ended; it stays known. Needs scope `admin`.

        Raises:
            NotFound: policy_not_found.
            Conflict: policy_is_active, policy_is_base.
        """
        body = UnloadPolicy(revision=revision)
        return await self._http.request("POST", _policy(name, "/unload"), body=body, reply=PolicyInfo)

    async def delete_policy(self, name: str, revision: str | None = None) -> None:
        """Forget one version, or all of a name; files stay. Needs scope `admin`.

        Raises:
            NotFound: policy_not_found.
            Conflict: policy_is_active, policy_is_base.
        """
        await self._http.request("DELETE", _policy(name), reply=Reply, params={"revision": revision})


def _policy(name: str, action: str = "") -> str:
    return f"/policies/{quote(name)}{action}"


_EVENT: Final[TypeAdapter[ExplainEvent]] = TypeAdapter(ExplainEvent)
_EVENT_NAMES: Final = frozenset(kind.model_fields["event"].default for kind in get_args(get_args(ExplainEvent)[0]))


def _explain_event(event: ServerSentEvent) -> ExplainEvent:
    try:
        return _EVENT.validate_json(event.data)
    except ValidationError as error:
        raise ProtocolError(f"POST /explain: `{event.name}` is not the protocol's: {error}") from error


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
