"""OpenAI's own Python client (2.54, installed by `make clients`) against the server."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from plugins.scripted import CLOSE, Asked, Scene

from rlt_client.errors import Overloaded, Unavailable
from rlt_client.schemas.common import Scope
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse
from rlt_service.app import create_app
from rlt_service.health import Check
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.openai.endpoints import router
from rlt_teacher_server.openai.errors import OpenAIErrors
from rlt_teacher_server.openai.service import ChatService

PYTHON = Path(__file__).parents[2] / ".clients" / "bin" / "python"
SCRIPT = Path(__file__).parent / "clients" / "run_openai.py"


def scripted(settings: Any) -> FastAPI:
    """A server that is full at first, and whose engine dies in the middle of a stream."""
    text, tries = "One and one and one and one", iter(range(9))

    async def pace(_sample: Asked, written: int) -> None:
        await asyncio.sleep(0.1)
        if written == 3:
            raise Unavailable("the engine is down", type="engine_down")

    scene = Scene(script=lambda _: text + CLOSE, pace=pace)
    explain = scene.service.explain

    async def full(request: ExplainRequest) -> ExplainResponse:
        if request.seed is None or not next(tries):
            raise Overloaded("1000 samples are being made or waiting", retry_after=1)
        scene.pace = lambda *_: asyncio.sleep(0)
        return await explain(request)

    async def ready() -> Mapping[str, Check]:
        return {}

    scene.service.explain = full  # type: ignore[method-assign]
    app = create_app(title="rlt-teacher-server", version="0", settings=settings(), routers=[router], ready=ready)
    app.add_middleware(OpenAIErrors)
    app.state.chat = ChatService(scene.service, scene.service._catalog, scene.service._sampler)
    return app


@pytest.fixture(scope="module")
def keys() -> tuple[str, str]:
    return create_token(), create_token()


@pytest.fixture(scope="module")
def url(settings: Any, reward_url: str, keys: tuple[str, str]) -> Iterator[str]:
    scopes = zip(keys, (Scope.explain, Scope.reward), strict=True)
    lines = [Key(hash_token(token), "somebody", frozenset({scope})).line() for token, scope in scopes]
    with running(lambda: build(settings(reward_url=reward_url, keys=";".join(lines)))) as url:
        yield url


@pytest.fixture(scope="module")
def found(url: str, keys: tuple[str, str], settings: Any, conversation: list[dict[str, Any]]) -> dict[str, Any]:
    """What its client makes of it; one process, since importing it takes seconds."""
    assert PYTHON.exists(), "run `make clients`"
    with running(lambda: scripted(settings)) as other:
        given = {"url": f"{url}/v1", "key": keys[0], "outsider": keys[1], "scripted": f"{other}/v1"}
        command = [str(PYTHON), str(SCRIPT), json.dumps(given | {"conversation": conversation})]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)  # takes 10 s on busy cores
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULT ")[2])


@pytest.fixture(scope="module")
def expected(url: str, keys: tuple[str, str], problem: dict[str, str]) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {keys[0]}"}
    reply = httpx.post(f"{url}/explain", json=problem | {"n": 3, "seed": 1}, headers=headers, timeout=60)
    return reply.json()


def test_create(found: dict[str, Any], expected: dict[str, Any]) -> None:
    spent = expected["usage"]["prompt_tokens"] + expected["usage"]["completion_tokens"]
    assert found["whole"] == {
        "contents": [each["text"] for each in expected["explanations"]],
        "finish": ["stop"] * 3,
        "model": expected["policy"]["name"],
        "fingerprint": expected["policy"]["revision"],
        "usage": spent,
        "status": ["complete"] * 3,
        "request_id": True,
    }
    assert found["beside"] == expected["explanations"][0]["text"]


def test_extras_in_and_out(found: dict[str, Any]) -> None:
    assert len(found["extras"]) == 4
    assert found["extras"] == sorted(found["extras"], reverse=True)
    logged, content = found["logprobs"]
    assert logged == content


def test_streams(found: dict[str, Any]) -> None:
    whole = found["whole"]
    assert found["stream"] == {"texts": whole["contents"], "finish": whole["finish"], "usage": whole["usage"]}
    assert found["helper"] == [*[whole["contents"][0]] * 3, "stop"]


def test_many_calls_at_once(found: dict[str, Any]) -> None:
    assert found["at_once"] == 8


def test_models(found: dict[str, Any], expected: dict[str, Any]) -> None:
    policy = expected["policy"]
    assert found["models"] == {"ids": ["teacher", policy["name"]], "one": policy["revision"]}


INVALID = "invalid_request_error"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("model", ["NotFoundError", 404, "model_not_found", "model", INVALID]),
        ("retrieve", ["NotFoundError", 404, "model_not_found", "model", INVALID]),
        ("tools", ["BadRequestError", 400, "unsupported_parameter", "tools", INVALID]),
        ("format", ["BadRequestError", 400, "unsupported_parameter", "response_format", INVALID]),
        ("length", ["BadRequestError", 400, "context_length_exceeded", "max_tokens", INVALID]),
        ("stream", ["BadRequestError", 400, "context_length_exceeded", "max_tokens", INVALID]),
        ("system", ["BadRequestError", 400, "unsupported_message", "messages[0]", INVALID]),
        ("key", ["AuthenticationError", 401, "invalid_api_key", None, "authentication_error"]),
        ("scope", ["PermissionDeniedError", 403, "missing_scope", None, "permission_error"]),
        ("busy", ["RateLimitError", 429, "rate_limit_exceeded", None, "rate_limit_error"]),
    ],
)
def test_refusals_are_the_clients_own_errors(found: dict[str, Any], what: str, told: list[Any]) -> None:
    assert found["refusals"][what] == told


def test_the_client_comes_back_when_it_is_told_to(found: dict[str, Any]) -> None:
    assert found["again"] == "stop"


def test_a_stream_that_fails_is_an_error_not_an_end(found: dict[str, Any]) -> None:
    kind, code, seen = found["broken"]
    assert (kind, code) == ("APIError", "engine_down")
    assert seen.strip()
    assert "One and one and one and one".startswith(seen.strip())
