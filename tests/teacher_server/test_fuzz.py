"""Whatever is sent, the teacher server answers with something that its document names, and goes on working."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from plugins.hostile import Hostile
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.settings import Settings

schema = schemathesis.openapi.from_path(Path(__file__).parents[2] / "docs" / "openapi" / "teacher.json")


@pytest.fixture(scope="module")
def fuzzed(settings: Callable[..., Settings], reward_url: str) -> Iterator[str]:
    with running(lambda: build(settings(reward_url=reward_url, max_tokens=16))) as url:
        yield url


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_nothing_that_the_document_allows_or_forbids_is_a_server_error(fuzzed: str, case: schemathesis.Case) -> None:
    case.call_and_validate(base_url=fuzzed, checks=[not_a_server_error, response_schema_conformance])


@pytest.fixture
def crowd(fuzzed: str, hostile: Callable[[str, str], Hostile]) -> Hostile:
    return hostile(fuzzed, "/explain")


@pytest.fixture
def body(problem: dict[str, str]) -> dict[str, Any]:
    return {**problem, "n": 2, "max_tokens": 16, "seed": 5}


@pytest.fixture
def explained(fuzzed: str, body: dict[str, Any]) -> Callable[[], list[str]]:
    def ask() -> list[str]:
        reply = httpx.post(f"{fuzzed}/explain", json=body, timeout=60).json()
        return [each["completion"] for each in reply["explanations"]]

    return ask


def inside(url: str) -> list[str]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return [line.split()[1] for line in lines if line.startswith("rlt_teacher_samples_inside ")]


def test_clients_that_hang_or_leave_in_mid_body_leave_nothing_behind(
    fuzzed: str, crowd: Hostile, explained: Callable[[], list[str]]
) -> None:
    before = explained()
    crowd.hang_in_mid_body()
    crowd.leave_in_mid_body()
    assert explained() == before
    assert inside(fuzzed) == ["0.0"]


@pytest.mark.parametrize("length", [5, 100_000])
def test_a_length_that_is_a_lie_is_refused_or_waited_for(
    crowd: Hostile, body: dict[str, Any], explained: Callable[[], list[str]], length: int
) -> None:
    content = json.dumps(body).encode()
    reply = crowd.lie(content, length)
    assert reply is None if length > len(content) else reply.startswith(b"HTTP/1.1 4")
    assert len(explained()) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_never_read_keep_nobody_waiting(
    crowd: Hostile, body: dict[str, Any], explained: Callable[[], list[str]], stream: bool
) -> None:
    crowd.never_read(json.dumps(body | {"n": 16, "stream": stream, "return_tokens": True}).encode(), times=20)
    assert len(explained()) == 2


def test_garbage_instead_of_http(crowd: Hostile, explained: Callable[[], list[str]]) -> None:
    crowd.send_garbage()
    assert len(explained()) == 2


def test_many_streams_at_once_a_connection_each(fuzzed: str, body: dict[str, Any]) -> None:
    lasts: list[str] = []

    def call() -> None:
        for _ in range(3):
            reply = httpx.post(f"{fuzzed}/explain", json=body | {"stream": True}, timeout=120).text
            lasts.append([line for line in reply.splitlines() if line.startswith("event: ")][-1])

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lasts == ["event: done"] * 60
