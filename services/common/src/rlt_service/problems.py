"""Every refusal as an RFC 9457 problem, whoever found it: our code, the router, pydantic, or the framework itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from http import HTTPStatus

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlt_client.errors import APIError, InvalidRequest, PayloadTooLarge, Unauthorized
from rlt_client.schemas.common import Problem
from rlt_service.hidden import without
from rlt_service.keys import TOKEN_PATTERN
from rlt_service.pointers import field_errors
from rlt_service.routing import RefusedBody

__all__ = ["MEDIA_TYPE", "ProblemBodies", "error_response", "install", "problem_response"]

MEDIA_TYPE = "application/problem+json"

_DETAILS = {404: "there is no such path", 405: "this path does not take this method"}


def problem_response(problem: Problem, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """What libraries and other servers say may stand in a detail, but no secret of ours, and nobody's key."""
    filled = problem.model_copy(update={"request_id": problem.request_id or correlation_id.get()})
    body = re.sub(TOKEN_PATTERN, "[redacted]", without(filled.model_dump_json(exclude_none=True)))
    return Response(body, status, dict(headers or {}), MEDIA_TYPE)


def error_response(error: APIError) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))  # whole seconds: RFC 9110
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = 'Bearer realm="rlt"'
    return problem_response(error.problem(), error.status, headers)


def install(app: FastAPI) -> None:
    """Register the handlers. Unexpected exceptions are `RequestLog`'s, which logs them."""
    app.add_exception_handler(APIError, _api_error)
    app.add_exception_handler(RefusedBody, _refused_body)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return error_response(error)


async def _refused_body(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedBody)
    return error_response(error.error)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it; logs and metrics do
    return _of_status(error.status_code, error.detail, request.scope, error.headers)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):
        return error_response(InvalidRequest("send JSON, with `content-type: application/json`", type="not_json"))
    return error_response(InvalidRequest(errors=field_errors(error.errors(), error.body)))


def _of_status(status: int, detail: str, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """An error of the framework, which knows only a status and sometimes a few words."""
    if status == 413:
        return error_response(PayloadTooLarge(_over_limit(scope)))
    phrase = HTTPStatus(status).phrase
    own_words = detail if detail and detail != phrase else _DETAILS.get(status)
    kind = phrase.lower().replace(" ", "_").replace("-", "_")
    return problem_response(Problem(type=kind, title=phrase, status=status, detail=own_words), status, headers)


def _over_limit(scope: Scope) -> str:
    limit = scope.get(MAX_BODY_SIZE_SCOPE_KEY)
    return "the body is over the limit" + (f" of {limit} bytes" if limit else "")


class ProblemBodies:
    """Turns errors that the framework answers as plain text (its body limit does) into problems."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        replaced = False

        async def replace(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and _is_plain_error(message):
                replaced = True
                await _of_status(message["status"], "", scope)(scope, receive, send)
            elif not replaced:
                await send(message)

        await self.app(scope, receive, replace)


def _is_plain_error(message: Message) -> bool:
    content_type: bytes = dict(message.get("headers", [])).get(b"content-type", b"")
    return bool(message["status"] >= 400) and content_type.startswith(b"text/plain")
