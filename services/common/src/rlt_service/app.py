"""`create_app`: a FastAPI app with everything that the wire conventions ask of every server.

    app = create_app(
        title="rlt-reward-server", version=version("rlt-reward-server"), settings=settings,
        routers=[endpoints.router(service)], lifespan=lifespan, ready=service.ready, metrics=metrics,
    )

Routers are `rlt_service.routing.Router`; each route declares a scope (`rlt_service.auth.requires`). An app with a
route that does neither is not made: `UndeclaredRoute`. From the outside in: request id, log line and 500s, problem
bodies, metrics, handlers of errors, key, body limit, the route. `app.state` has `auth`, `metrics` and `settings`.
Building an app does no work and opens nothing: models and connections belong into `lifespan`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import APIRouter, FastAPI
from fastapi.routing import RouteContext, iter_route_contexts
from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from rlt_client.errors import RLTError
from rlt_client.schemas.common import Problem
from rlt_service import health, problems, telemetry
from rlt_service.access import RequestLog
from rlt_service.auth import PUBLIC_PATHS, Authenticator, is_public, undeclared_routes
from rlt_service.key_files import observe_keys
from rlt_service.keys import KeyStore
from rlt_service.logs import redact
from rlt_service.metrics import Metrics, http_observer
from rlt_service.problems import MEDIA_TYPE, ProblemBodies
from rlt_service.rates import RateLimiter
from rlt_service.routing import StrictRoute
from rlt_service.settings import ServerSettings

__all__ = ["Lifespan", "UndeclaredRoute", "create_app"]

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]

_REQUEST_ID = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
"""Whatever a proxy or a trainer calls its requests, as long as it cannot break a log line."""

_PROBLEM: dict[str, Any] = {
    "description": "A problem (RFC 9457)",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


class UndeclaredRoute(RLTError):
    """A route declares no scope, or would not check the key before it reads the body."""


def create_app(
    *,
    title: str,
    version: str,
    settings: ServerSettings,
    routers: Sequence[APIRouter],
    ready: health.Ready,
    lifespan: Lifespan | None = None,
    keystore: KeyStore | None = None,
    metrics: Metrics | None = None,
    description: str = "",
) -> FastAPI:
    """Raises `UndeclaredRoute`, and `BadKeys` for keys that cannot be read.

    `title` is the name of the distribution, which `/version` gives. `keystore` replaces the keys of the settings (chain
    them with `ChainedKeys` to keep both).
    """
    metrics = metrics or Metrics()
    app = _App(
        title=title,
        version=version,
        description=description,
        lifespan=lifespan,
        middleware=_middleware(metrics),
        telemetry=telemetry.config(),
        docs_url=None,  # both pages load their scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # to an absolute address, of whatever host and scheme the caller named: `OneSpelling`
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings, app.state.metrics = settings, metrics
    app.state.auth = Authenticator.of(settings, keystore)
    observe_keys(app.state.auth.store, metrics)
    app.state.limiter = RateLimiter(metrics)
    problems.install(app)
    app.include_router(health.router(title, version, ready, metrics), responses={"5XX": _PROBLEM})
    for router in routers:
        app.include_router(router, max_body_size=settings.max_body_bytes, responses={"4XX": _PROBLEM, "5XX": _PROBLEM})
    _check_routes(app)
    return app


def _middleware(metrics: Metrics) -> list[Middleware]:
    """From the outside in."""
    return [
        Middleware(OneSpelling),
        Middleware(CorrelationIdMiddleware, header_name="x-request-id", validator=_valid_request_id),
        Middleware(RequestLog),
        Middleware(ProblemBodies),
        Middleware(
            PrometheusInstrumentatorMiddleware,
            instrumentations=[http_observer(metrics)],
            should_group_status_codes=False,
            excluded_handlers=[f"^{path}$" for path in PUBLIC_PATHS],
        ),
    ]


class OneSpelling:
    """A path with a slash at its end is the one without: trainers' clients put addresses together as they like."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self.app(scope, receive, send)


class _App(FastAPI):
    """FastAPI whose OpenAPI document knows the problem that every route may answer."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(schema.pop("$defs", {}))
        schemas["Problem"] = schema
        return document


def _check_routes(app: FastAPI) -> None:
    undeclared = undeclared_routes(app)
    if undeclared:
        raise UndeclaredRoute(f"no scope is declared by {', '.join(undeclared)}: add `requires(Scope.…)`")
    loose = [str(route.path) for route in iter_route_contexts(app.routes) if not _is_strict(route)]
    if loose:
        raise UndeclaredRoute(f"not routes of a `rlt_service.routing.Router`: {', '.join(loose)}")


def _is_strict(route: RouteContext) -> bool:
    return is_public(route) or isinstance(route.original_route, StrictRoute)


def _valid_request_id(value: str) -> bool:
    """A key that came into the wrong header would be told to everybody who reads logs and replies."""
    return _REQUEST_ID.fullmatch(value) is not None and redact(value) == value
