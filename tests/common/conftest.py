"""A small server with one route of each kind, on a real port."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Annotated, Any

import httpx
import pytest
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from rlt_client.errors import Overloaded
from rlt_client.schemas import common
from rlt_client.schemas.common import Scope
from rlt_service import logs
from rlt_service.app import create_app
from rlt_service.auth import Principal, requires
from rlt_service.health import Check
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.routing import LenientRoute, Router
from rlt_service.settings import ServerSettings
from rlt_service.testing import running

LIMIT = 4096
REWARD_TOKEN, ADMIN_TOKEN, PATH_TOKEN = create_token(), create_token(), create_token()
KEYS = (
    Key(hash_token(REWARD_TOKEN), "alice", frozenset({Scope.reward})),
    Key(hash_token(ADMIN_TOKEN), "root", frozenset({Scope.admin})),
    Key(hash_token(PATH_TOKEN), "trainer", frozenset({Scope.reward}), in_path=True),
)


class Spec(common.Request):
    preset: str
    weight: float = Field(1.0, alias="lambda", ge=0)


class Item(common.Request):
    text: str = Field(min_length=1)
    values: list[float] = Field(default_factory=list)
    meta: dict[str, Any] = Field(default_factory=dict)


class Body(common.Request):
    items: list[Item]
    spec: str | Spec = "rlt"


def make_router() -> Router:
    router = Router()

    @router.post("/echo")
    async def echo(body: Body, caller: Annotated[Principal, requires(Scope.reward)], limit: int = 10) -> dict[str, Any]:
        return {"owner": caller.owner, "key_id": caller.key_id, "items": len(body.items), "limit": limit}

    @router.post("/large", max_body_size=100 * LIMIT, dependencies=[requires(Scope.reward)])
    async def large(body: dict[str, Any]) -> dict[str, int]:
        return {"members": len(body)}

    @router.post("/uploads", max_body_size=sys.maxsize, dependencies=[requires(Scope.reward)])
    async def upload(request: Request) -> dict[str, int]:
        return {"bytes": sum([len(chunk) async for chunk in request.stream()])}

    @router.get("/things/{name}", dependencies=[requires(Scope.admin)])
    async def thing(name: str) -> str:
        return name

    @router.post("/k/{path_key}/echo", dependencies=[requires(Scope.reward)])
    async def in_path(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @router.get("/busy", dependencies=[requires(Scope.reward)])
    async def busy() -> None:
        raise Overloaded("the queue is full", retry_after=1.2)

    @router.get("/boom", dependencies=[requires(Scope.reward)])
    async def boom() -> None:
        raise RuntimeError(f"the database at db.internal said no to {REWARD_TOKEN}")

    @router.get("/lies", response_model=Item, dependencies=[requires(Scope.reward)])
    async def lies() -> Any:
        return {"text": 3}

    @router.get("/breaks", dependencies=[requires(Scope.reward)])
    async def breaks() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            yield b"first\n"
            raise RuntimeError("in the middle")

        return StreamingResponse(lines())

    return router


def lenient_router() -> Router:
    router = Router(route_class=LenientRoute)

    @router.post("/lenient", dependencies=[requires(Scope.reward)])
    async def lenient(body: dict[str, Any]) -> str:
        return repr(body)

    return router


async def is_ready() -> Mapping[str, Check]:
    return {"model": Check(ok=True)}


MakeApp = Callable[..., FastAPI]


def make_app(**changes: Any) -> FastAPI:
    """The server with keys; `settings` are changed by fields, everything else by the arguments of `create_app`."""
    fields = {"keys": ";".join(key.line() for key in KEYS), "max_body_bytes": LIMIT, **changes.pop("settings", {})}
    options: dict[str, Any] = {"routers": [make_router(), lenient_router()], "ready": is_ready, **changes}
    return create_app(title="rlt-echo", version="1.2.3", settings=ServerSettings(**fields), **options)


@pytest.fixture(scope="session")
def tokens() -> dict[str, str]:
    return {"reward": REWARD_TOKEN, "admin": ADMIN_TOKEN, "path": PATH_TOKEN}


@pytest.fixture(scope="session")
def build() -> MakeApp:
    return make_app


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with running(make_app) as base_url:
        yield base_url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {REWARD_TOKEN}"}) as client:
        yield client


class LogLines(io.StringIO):
    def records(self, least: int = 1, **members: Any) -> list[dict[str, Any]]:
        """The lines that have these members. A request's own line may come just after its reply: it is waited for."""
        deadline = time.monotonic() + 60
        while len(found := self._having(members)) < least and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    def _having(self, members: dict[str, Any]) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.getvalue().splitlines()]
        return [line for line in lines if members.items() <= line.items()]


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    """What the process logs as JSON, at debug."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = LogLines()
    logs.configure("debug", "json", service="rlt-echo", stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()
