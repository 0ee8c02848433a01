"""The server around the rewards: who may call, how much, what happens under load, when it is ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from rlt_client.schemas.common import Scope
from rlt_reward_server.app import build
from rlt_reward_server.engine.scorer import CausalScorer
from rlt_reward_server.errors import Reason, item_error
from rlt_reward_server.passes import Pass
from rlt_reward_server.settings import Settings
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.testing import running

ITEM = {"question": "What is 2 times 3?", "answer": "It is 6.", "explanation": "\n\nis carry so of"}
BODY = {"items": [ITEM], "spec": "ss_only"}

request = partial(httpx.request, verify=False)  # plain HTTP: reading the certificates would take most of the time
get, post = partial(request, "GET"), partial(request, "POST")


@pytest.fixture(scope="module")
def tokens() -> dict[Scope, str]:
    return {scope: create_token() for scope in (Scope.reward, Scope.explain, Scope.admin)}


@pytest.fixture(scope="module")
def guarded_url(settings: Callable[..., Settings], tokens: dict[Scope, str]) -> Iterator[str]:
    """With keys, and with small limits."""
    lines = [Key(hash_token(token), f"{scope}-owner", frozenset({scope})).line() for scope, token in tokens.items()]
    with running(lambda: build(settings(keys=";".join(lines), max_body_bytes=2000, max_items=3))) as url:
        yield url


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/reward"), ("GET", "/models"), ("GET", "/formats"), ("GET", "/presets")]
)
def test_every_route_needs_a_key_of_its_scope(
    guarded_url: str, tokens: dict[Scope, str], method: str, path: str
) -> None:
    def call(headers: dict[str, str]) -> httpx.Response:
        return request(method, guarded_url + path, json=BODY if method == "POST" else None, headers=headers)

    assert (call({}).status_code, call({}).json()["type"]) == (401, "unauthorized")
    assert call(bearer("rlt_wrong")).status_code == 401
    wrong = call(bearer(tokens[Scope.explain]))
    assert (wrong.status_code, wrong.json()["type"]) == (403, "missing_scope")
    assert call(bearer(tokens[Scope.reward])).status_code == 200
    assert call(bearer(tokens[Scope.admin])).status_code == 200


def test_health_needs_no_key(guarded_url: str) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/version"):
        assert get(guarded_url + path).status_code == 200


def test_a_body_over_the_limit(guarded_url: str, tokens: dict[Scope, str]) -> None:
    body = {"items": [{**ITEM, "question": "x" * 3000}]}
    response = post(f"{guarded_url}/reward", json=body, headers=bearer(tokens[Scope.reward]))
    assert (response.status_code, response.json()["type"]) == (413, "payload_too_large")


def test_too_many_items(guarded_url: str, tokens: dict[Scope, str]) -> None:
    """413, so that clients send halves."""
    response = post(f"{guarded_url}/reward", json={"items": [ITEM] * 4}, headers=bearer(tokens[Scope.reward]))
    assert (response.status_code, response.json()["type"]) == (413, "too_many_items")


class Gate:
    """Holds every forward pass back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.passes = 0
        real = CausalScorer.log_probs

        def log_probs(scorer: CausalScorer, passes: Sequence[Pass]) -> Any:
            self.entered.set()
            assert self.open.wait(60)
            self.passes += len(passes)
            return real(scorer, passes)

        monkeypatch.setattr(CausalScorer, "log_probs", log_probs)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def gated_url(gate: Gate, settings: Callable[..., Settings]) -> Iterator[str]:
    """A server whose engine can be held."""
    with running(lambda: build(settings())) as url:
        yield url
        gate.open.set()


def hold(gate: Gate) -> None:
    gate.open.clear()
    gate.entered.clear()


def test_a_busy_server_is_alive_and_ready(gated_url: str, gate: Gate) -> None:
    hold(gate)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(post, f"{gated_url}/reward", json=BODY, timeout=60)
        assert gate.entered.wait(60)
        assert get(f"{gated_url}/livez").status_code == 200
        ready = get(f"{gated_url}/readyz")
        gate.open.set()
        assert call.result().status_code == 200
    assert ready.status_code == 200
    assert "running" in ready.json()["checks"]["scorer"]["detail"]


def test_a_server_that_cannot_score_is_not_ready(gated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get(f"{gated_url}/readyz").status_code == 200
    failing = lambda _scorer, passes: [item_error(Reason.out_of_memory) for _ in passes]  # noqa: E731 shortest
    monkeypatch.setattr(CausalScorer, "log_probs", failing)
    response = get(f"{gated_url}/readyz")
    assert (response.status_code, response.json()["type"]) == (503, "not_ready")
    assert "out_of_memory" in response.json()["checks"]["scorer"]["detail"]
    [score] = post(f"{gated_url}/reward", json=BODY).json()["items"]
    assert (score["status"], score["error"]["type"]) == ("score_error", "out_of_memory")


def test_the_probe_of_a_hosted_teacher_goes_through_both_models(
    settings: Callable[..., Settings], golden_dir: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[CausalScorer] = []
    real = CausalScorer.log_probs

    def log_probs(scorer: CausalScorer, passes: Sequence[Pass]) -> Any:
        seen.append(scorer)
        return real(scorer, passes)

    monkeypatch.setattr(CausalScorer, "log_probs", log_probs)
    with running(lambda: build(settings(teacher=str(golden_dir / "teacher")))):
        assert len(set(map(id, seen))) == 2


def test_the_document_of_the_api(bare_url: str) -> None:
    document = get(f"{bare_url}/openapi.json").json()
    assert {"/reward", "/models", "/formats", "/presets"} <= set(document["paths"])
