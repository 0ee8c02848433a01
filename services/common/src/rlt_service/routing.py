"""Routes of the servers: key, scope and rate are checked before the body is read, and JSON is read strictly.

`Router` is FastAPI's `APIRouter` with these routes. NaN, Infinity, lone surrogates and nesting deeper than 200 are
not JSON and are refused; `Router(route_class=LenientRoute)` lets NaN and Infinity through, for protocols whose
clients send them. A route that takes larger bodies than the server's limit says so: `@router.post("/uploads",
max_body_size=sys.maxsize)`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ClassVar

import fastapi.routing
import pydantic_core
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.routing import APIRoute

from rlt_client.errors import APIError, InvalidRequest
from rlt_client.schemas.common import FieldError
from rlt_service.auth import authenticate, declared_scopes
from rlt_service.pointers import pointer

__all__ = ["LenientRoute", "MalformedRequest", "RefusedBody", "Router", "StrictRoute"]


class MalformedRequest(InvalidRequest):
    """The body is not JSON at all."""

    status = 400
    default_type = "malformed_json"
    title = "The body is not JSON"


class RefusedBody(HTTPException):
    """Carries a refusal through FastAPI's reading of the body, which turns other exceptions into a bare 400."""

    def __init__(self, error: APIError) -> None:
        super().__init__(error.status)
        self.error = error


class _JSONRequest(Request):
    allow_inf_nan = False

    async def json(self) -> Any:
        body = await self.body()
        try:
            return parse_json(body, allow_inf_nan=self.allow_inf_nan)
        except APIError as error:
            raise RefusedBody(error) from error


class _LenientRequest(_JSONRequest):
    allow_inf_nan = True


class StrictRoute(APIRoute):
    request_class: ClassVar[type[Request]] = _JSONRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler, scopes = super().get_route_handler(), declared_scopes(_effective(self).dependant)

        async def handle(request: Request) -> Response:
            caller = await authenticate(request)
            for scope in scopes:
                caller.demand(scope)
            request.app.state.limiter.request(caller.counted_as, caller.rates)
            return await handler(self.request_class(request.scope, request.receive))

        return handle


def _effective(route: APIRoute) -> APIRoute:
    """The route with what the routers around it add. FastAPI makes a handler for each place where a route is included
    and tells it which only in this private way; without it, scopes of routers are demanded after the body is read."""
    context = getattr(fastapi.routing, "_effective_route_context_var", None)
    found = context.get() if context is not None else None
    return found if found is not None and found.original_route is route else route


class LenientRoute(StrictRoute):
    request_class = _LenientRequest


class Router(APIRouter):
    """An `APIRouter` of strict routes."""

    def __init__(self, *, route_class: type[StrictRoute] = StrictRoute, **options: Any) -> None:
        super().__init__(route_class=route_class, **options)


def parse_json(body: bytes, *, allow_inf_nan: bool = False) -> Any:
    """Raises `MalformedRequest`, or `InvalidRequest` with a pointer to each number that is not finite."""
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=True)
    except ValueError as error:
        raise MalformedRequest(str(error)) from error
    if not allow_inf_nan and not _all_finite(value):
        places = itertools.islice(_not_finite(value, ()), 50)
        errors = [FieldError(pointer=pointer(path), detail="not a finite number") for path in places]
        raise InvalidRequest("numbers must be finite", type="not_finite", errors=errors)
    return value


def _all_finite(value: Any) -> bool:
    """Numbers such as 1e999 overflow without being spelt Infinity, so the values are looked at, not the text."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    if isinstance(value, list):
        return _sum_is_finite(value) or all(map(_all_finite, value))
    return True


def _sum_is_finite(values: list[Any]) -> bool:
    """Many times quicker for an array of log-probs: one that is not finite makes the sum so."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):  # not all numbers; an integer that no float can hold
        return False


def _not_finite(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _not_finite(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _not_finite(child, (*path, index))
