"""The asynchronous client of the teacher server; `rlt_client.aio` has it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, get_args
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from rlt_client._events import ServerSentEvent, read_events
from rlt_client._service import ServiceClient
from rlt_client.errors import ProtocolError, TransportError, error_from_problem
from rlt_client.schemas.common import Reply
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
from rlt_client.schemas.policies import (
    ActivatePolicy,
    LoadedPolicy,
    LoadPolicy,
    PolicyInfo,
    PolicyList,
    RollbackPolicy,
    UnloadPolicy,
)

__all__ = ["AsyncTeacherClient"]

IDLE: Final = 60.0  # a streamed reply pings every 15 s: four missed ones, and nobody is there any more

_EVENT: Final[TypeAdapter[ExplainEvent]] = TypeAdapter(ExplainEvent)
_EVENT_NAMES: Final = frozenset(kind.model_fields["event"].default for kind in get_args(get_args(ExplainEvent)[0]))


def _explain_event(event: ServerSentEvent) -> ExplainEvent:
    try:
        return _EVENT.validate_json(event.data)
    except ValidationError as error:
        raise ProtocolError(f"POST /explain: `{event.name}` is not the protocol's: {error}") from error


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
