"""Refusals under `/v1/` as OpenAI's error objects, whoever refused: our code, the key check, the router, the limits."""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlt_client.errors import APIError, InternalError, InvalidRequest
from rlt_client.schemas.common import Problem
from rlt_service.pointers import at
from rlt_service.problems import MEDIA_TYPE
from rlt_teacher_server.openai.replies import OpenAIError, OpenAIErrorBody

__all__ = ["OpenAIErrors", "error_body", "sample_refusal"]

PREFIX: Final = "/v1/"
INVALID: Final = "invalid_request_error"
TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES: Final = {
    "unauthorized": "invalid_api_key",
    "unknown_key": "invalid_api_key",
    "policy_not_found": "model_not_found",
    "context_overflow": "context_length_exceeded",
    "overloaded": "rate_limit_exceeded",
    "rate_limited": "rate_limit_exceeded",
}
"""Names that programs branch on, where OpenAI has one of its own; else the platform's."""
CALLERS_DOING: Final = {"context_overflow", "unknown_token", "engine_refused"}
NOT_AGAIN: Final = {409, 500}
"""OpenAI's clients would ask again after these by themselves; here the same request fails the same way."""


class OpenAIErrors:
    """Rewrites problem documents (RFC 9457) of paths under `/v1/`; put around everything that may answer one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            send = _Rewriting(send)
        await self.app(scope, receive, send)


class _Rewriting:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_problem(message):
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._rewrite(self._start)

    async def _rewrite(self, start: Message) -> None:
        status = 400 if start["status"] == 422 else start["status"]
        problem = Problem.model_validate_json(self._body).model_copy(update={"status": status})
        body = OpenAIError(error=error_body(problem)).model_dump_json().encode()
        headers = MutableHeaders(raw=list(start["headers"]))
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        if status in NOT_AGAIN:
            headers["x-should-retry"] = "false"
        await self._send({**start, "status": status, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})


def _is_problem(message: Message) -> bool:
    return (b"content-type", MEDIA_TYPE.encode()) in [(name.lower(), value) for name, value in message["headers"]]


def error_body(problem: Problem) -> OpenAIErrorBody:
    """`param` is the first place that the problem points to, as OpenAI spells places: `messages[0].content`."""
    status = problem.status or 500
    kind = TYPES.get(status, INVALID if status < 500 else "server_error")
    places = [_spelt(error.pointer) for error in problem.errors or ()]
    return OpenAIErrorBody(
        message=_message(problem, places),
        type=kind,
        param=next(iter(places), None) or None,
        code=CODES.get(problem.type, problem.type),
    )


def _message(problem: Problem, places: list[str]) -> str:
    if problem.detail is not None:
        return problem.detail
    pairs = zip(places, problem.errors or (), strict=True)
    return "; ".join(f"{place}: {error.detail}" if place else error.detail for place, error in pairs) or problem.title


def _spelt(pointer: str) -> str:
    path = pointer.removeprefix("/").replace("/", ".")
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path).replace("~1", "/").replace("~0", "~")


def sample_refusal(problem: Problem) -> APIError:
    """The refusal of a whole request whose samples all failed, for the reason of one of them."""
    kind = InvalidRequest if problem.type in CALLERS_DOING else InternalError
    error = kind(problem.detail or problem.title, type=problem.type)
    return at("/max_tokens", error) if problem.type == "context_overflow" else error
