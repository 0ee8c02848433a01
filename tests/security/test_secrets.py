"""Secrets stand where they belong and nowhere else: not in a log line, a reply, a metric or a span of any server.

Each server is driven with secrets in every place that a caller has, and with its own: keys for others, passwords in
addresses, tokens in the environment. What it talks to repeats them, in its refusals and its errors.
"""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.routing import iter_route_contexts
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from rlt_client.schemas.common import Scope
from rlt_service import logs, telemetry
from rlt_service.auth import is_public
from rlt_service.hidden import hide, secrets_of, secrets_of_environment
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.settings import ServerSettings
from rlt_service.spans import Guarded
from rlt_service.testing import running

CALLERS, IN_PATH, UNKNOWN = create_token(), create_token(), create_token()
OWN = {
    "key for the reward server": "of-the-reward-server-0123",
    "key for the teacher": "of-the-teacher-server-0123",
    "key for the engine": "of-the-engine-0123456789",
    "password of the database": "of-the-database-01234567",
    "password of redis": "of-the-redis-0123456789a",
    "secret of S3": "of-the-bucket-0123456789abcdefghijklmnop",
    "token of the hub": "hf_oftheHub0123456789abcdefghijkl",
}
CALLERS_OWN = {"the caller's key": CALLERS, "a key in the path": IN_PATH, "a wrong key": UNKNOWN}


class Seen:
    """Everything that left a server."""

    def __init__(self) -> None:
        self.lines = io.StringIO()
        self.spans = InMemorySpanExporter()
        self.replies: list[str] = []
        self.metrics: list[str] = []

    def keep(self, reply: httpx.Response) -> None:
        self.replies.append(f"{reply.status_code} {reply.headers} {reply.text}")

    def check(self) -> None:
        spans = "\n".join(span.to_json() for span in self.spans.get_finished_spans())
        places = {"logs": self.lines.getvalue(), "metrics": "\n".join(self.metrics), "spans": spans}
        assert all(places.values()), f"something was to be seen in {places.keys()}"
        for what, secret in (OWN | CALLERS_OWN).items():
            assert [place for place, text in places.items() if secret in text] == [], what
            assert [reply for reply in self.replies if secret in reply] == [], what


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Logs at debug, spans of every request, and the environment's secrets."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id-of-the-bucket")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", OWN["secret of S3"])
    monkeypatch.setenv("HF_TOKEN", OWN["token of the hub"])
    made = Seen()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Guarded(made.spans)))
    config = telemetry.config()
    monkeypatch.setattr(telemetry, "config", lambda: {**config, "tracer_provider": provider})
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logs.configure("debug", "json", service="tested", stream=made.lines)
    yield made
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def keys() -> str:
    scopes = frozenset(Scope)
    lines = Key(hash_token(CALLERS), "ann", scopes).line(), Key(hash_token(IN_PATH), "ann", scopes, in_path=True).line()
    return ";".join(lines)


def known(settings: ServerSettings) -> None:
    """As `load` does for a process."""
    hide([*secrets_of(settings), *secrets_of_environment()])


@asynccontextmanager
async def served(app: FastAPI, *, start: bool) -> AsyncIterator[httpx.AsyncClient]:
    async with AsyncExitStack() as stack:
        if start:
            await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        yield await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))


async def drive(app: FastAPI, seen: Seen, *, start: bool = False, more: dict[str, Any] | None = None) -> None:
    """Every route, with secrets in every place of a request; then `more`, bodies by path."""
    async with served(app, start=start) as http:
        for route in iter_route_contexts(app.routes):
            for method in sorted(route.methods or ()):
                requests = _requests(http, method, str(route.path))
                for request in islice(requests, 1) if is_public(route) else requests:
                    seen.keep(await http.send(request))
        for path, body in (more or {}).items():
            seen.keep(await http.post(path, json=body, headers={"authorization": f"Bearer {CALLERS}"}))
        seen.metrics.append((await http.get("/metrics")).text)


def _requests(http: httpx.AsyncClient, method: str, path: str) -> Iterator[httpx.Request]:
    bearer = {"authorization": f"Bearer {CALLERS}"}
    json = {"content-type": "application/json"}
    numbers = path.replace("{build_id}", "1").replace("{version_id}", "1")
    here = numbers.replace("{path_key}", IN_PATH).replace("{", "").replace("}", "").replace(":path", "")
    there = numbers.replace("{role}", "student")
    for name in ("path_key", "name:path", "name", "model:path", "upload_id"):
        there = there.replace("{" + name + "}", UNKNOWN)
    yield http.build_request(method, here, headers={**bearer, "x-request-id": CALLERS, "x-api-key": CALLERS})
    yield http.build_request(method, there, headers={"authorization": f"Basic {UNKNOWN}", "cookie": f"key={UNKNOWN}"})
    yield http.build_request(
        method, there, headers=bearer, params={"key": UNKNOWN, "cursor": UNKNOWN, "limit": UNKNOWN}
    )
    yield http.build_request(method, here, headers={**bearer, **json}, content=f'{{"key": "{CALLERS}", '.encode())
    body = {CALLERS: CALLERS, "question": CALLERS, "answer": 3, "format": CALLERS, "items": [{"question": CALLERS}]}
    yield http.build_request(method, here, headers=bearer, json=body)
    yield http.build_request(method, f"{here}/{UNKNOWN}", headers={"authorization": f"bearer {UNKNOWN}"})
    yield http.build_request("BREW", here, headers=bearer)


async def test_reward_server(seen: Seen) -> None:
    from rlt_reward_server.app import build
    from rlt_reward_server.settings import Settings

    settings = Settings(student="unused", keys=keys())
    known(settings)
    await drive(build(settings), seen)
    seen.check()


def parrot() -> FastAPI:
    """A server that refuses everything and repeats what it was sent, headers and all."""
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def repeat(path: str, request: Request) -> Response:
        said = f"{path} {dict(request.headers)} {(await request.body()).decode()}".replace('"', "'")
        status = 200 if path == "health" else 500
        problem = {"type": "internal_error", "title": said, "detail": said, "message": said, "object": "error"}
        return httpx_response(problem, status)

    return app


def httpx_response(body: dict[str, Any], status: int) -> Response:
    from fastapi.responses import JSONResponse

    return JSONResponse(body, status)


async def test_teacher_server_whose_engine_and_reward_server_repeat_its_keys(seen: Seen, tiny_model: Path) -> None:
    from rlt_teacher_server.app import build
    from rlt_teacher_server.settings import Settings

    with running(parrot) as url:
        settings = Settings(
            model=str(tiny_model),
            format="mini",
            engine=[url],
            engine_key=SecretStr(OWN["key for the engine"]),
            reward_url=url,
            reward_key=SecretStr(OWN["key for the reward server"]),
            reward_timeout_s=2,
            keys=keys(),
        )
        known(settings)
        problem = {"question": "Q 36 A +5", "answer": "41"}
        options = {"score": True, "max_tokens": 4}
        more = {"/explain": problem | options, "/explain/batch": {"problems": [problem], **options}}
        await drive(build(settings), seen, start=True, more=more)
    seen.check()


@pytest.mark.parametrize(
    "store",
    # its library asks five times each time: half a minute, and minutes beside other tests
    ["store", pytest.param("s3://bucket/prefix", marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
async def test_jobs_whose_database_and_store_are_away(
    seen: Seen, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlt_jobs.app import build
    from rlt_jobs.settings import Settings

    monkeypatch.chdir(tmp_path)
    settings = Settings(
        database_url=f"postgresql+psycopg://rlt:{OWN['password of the database']}@127.0.0.1:9/rlt",
        redis_url=f"redis://:{OWN['password of redis']}@127.0.0.1:9/0",
        store=store,
        store_endpoint="http://127.0.0.1:9",
        teacher_url="http://127.0.0.1:9",
        teacher_key=SecretStr(OWN["key for the teacher"]),
        reward_key=SecretStr(OWN["key for the reward server"]),
        allow_hub=True,
        keys=keys(),
    )
    known(settings)
    await drive(build(settings), seen)
    seen.check()


def test_what_is_not_said_would_be_found(seen: Seen) -> None:
    """The search itself: a secret that is said is seen."""
    logging.getLogger("x").info("the key is %s", "x".join(OWN["key for the engine"]))
    seen.metrics.append("m 1")
    with TracerProvider().get_tracer("t").start_as_current_span("s"):
        pass
    seen.lines.write(OWN["key for the engine"])
    with pytest.raises(AssertionError):
        seen.check()
