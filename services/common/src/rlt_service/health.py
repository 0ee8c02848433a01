"""`/livez`, `/readyz`, `/metrics`, `/version`: no key, no logging at info.

`/livez` says that the event loop turns, nothing more. `/readyz` asks the server's own checks, which prove that it can
do its work (the model produced a token, the database answered), and names each that fails.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field

from rlt_client.schemas.common import Problem, Reply
from rlt_service.metrics import Metrics
from rlt_service.problems import problem_response

__all__ = ["Check", "NotReady", "Readiness", "Ready", "Version", "router"]

_READY_TIMEOUT_S = 10.0
"""A check that hangs is a check that fails; orchestrators ask again every few seconds."""


class Check(Reply):
    """One thing that a server needs."""

    ok: bool
    detail: str | None = None


Ready = Callable[[], Awaitable[Mapping[str, Check]]]
"""A server's own checks, by name."""


class Live(Reply):
    status: str = "live"


class Readiness(Reply):
    status: str = "ready"
    checks: Mapping[str, Check]


class NotReady(Problem):
    checks: Mapping[str, Check] = Field(default_factory=dict)


class Version(Reply):
    name: str
    version: str
    python: str


def router(name: str, version: str, ready: Ready, metrics: Metrics) -> APIRouter:
    """The four routes of a server called `name`."""
    routes = APIRouter(tags=["health"])

    @routes.get("/livez")
    async def livez() -> Live:
        return Live()

    @routes.get("/readyz", response_model=Readiness)
    async def readyz() -> Readiness | Response:
        checks = await _run(ready)
        return Readiness(checks=checks) if all(check.ok for check in checks.values()) else _refusal(checks)

    @routes.get("/metrics", response_class=Response)
    async def metrics_text() -> Response:
        if metrics.refresh is not None:
            await metrics.refresh()
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/version")
    async def version_of() -> Version:
        return Version(name=name, version=version, python=platform.python_version())

    return routes


async def _run(ready: Ready) -> Mapping[str, Check]:
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            return await ready()
    except TimeoutError:
        return {"ready": Check(ok=False, detail=f"no answer within {_READY_TIMEOUT_S:g} s")}
    except Exception as error:  # whatever it is, the server is not ready, and the asker has to be told
        return {"ready": Check(ok=False, detail=type(error).__name__)}


def _refusal(checks: Mapping[str, Check]) -> Response:
    failing = (f"{name} ({check.detail})" if check.detail else name for name, check in checks.items() if not check.ok)
    problem = NotReady(
        type="not_ready", title="Not ready", status=503, detail=f"waiting for {', '.join(failing)}", checks=checks
    )
    return problem_response(problem, 503, {"retry-after": "1"})
