"""The teacher server with the tiny model in its process, beside a real reward server with the same model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlt_client.formats import Format, shipped_formats
from rlt_reward_server import app as reward_app
from rlt_reward_server.settings import Settings as RewardSettings
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.sampler import Sampler
from rlt_teacher_server.settings import Settings

QUESTION = {"question": "Q 36 A +5 B *3 C +11 D +5", "answer": "17"}

SettingsOf = Callable[..., Settings]


@pytest.fixture(scope="session")
def problem() -> dict[str, str]:
    """36 + 5 = 41; · 3 = 123 ≡ 1 (mod 61); + 11 = 12; + 5 = 17."""
    return QUESTION


@pytest.fixture(scope="session")
def mini() -> Format:
    return shipped_formats()["mini"]


@pytest.fixture(scope="session")
def settings(tiny_model: Path) -> SettingsOf:
    def make(**given: Any) -> Settings:
        return Settings(**({"model": str(tiny_model), "format": "mini", "threads": 1} | given))

    return make


@pytest.fixture
def unending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that are written and then never end: whoever waits for them leaves first, on a fast machine too."""
    sample = Sampler.sample

    async def written(self: Sampler, *given: Any) -> None:
        await sample(self, *given)
        await asyncio.Event().wait()

    monkeypatch.setattr(Sampler, "sample", written)


@pytest.fixture(scope="session")
def reward_url(tiny_model: Path) -> Iterator[str]:
    given = RewardSettings(student=str(tiny_model), format="mini", threads=1)
    with running(lambda: reward_app.build(given)) as url:
        yield url


@pytest.fixture(scope="session")
def teacher_url(settings: SettingsOf, reward_url: str) -> Iterator[str]:
    with running(lambda: build(settings(reward_url=reward_url))) as url:
        yield url


@pytest.fixture
def teacher(teacher_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=teacher_url, timeout=60) as client:
        yield client


@pytest.fixture
def reward(reward_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=reward_url, timeout=60) as client:
        yield client


@pytest.fixture
def explain(teacher: httpx.Client, problem: dict[str, str]) -> Callable[..., dict[str, Any]]:
    """`POST /explain` with the usual problem; the reply, which must be 200."""

    def ask(**given: Any) -> dict[str, Any]:
        response = teacher.post("/explain", json=problem | {"max_tokens": 27} | given)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


@pytest.fixture(scope="session")
def conversation(problem: dict[str, str]) -> list[dict[str, Any]]:
    """The usual problem as OpenAI's messages."""
    return [{"role": "user", "content": problem["question"]}, {"role": "assistant", "content": problem["answer"]}]


@pytest.fixture
def chat(teacher: httpx.Client, conversation: list[dict[str, Any]]) -> Callable[..., httpx.Response]:
    """`POST /v1/chat/completions` with the usual problem."""

    def ask(**given: Any) -> httpx.Response:
        body = {"model": "teacher", "messages": conversation, "max_tokens": 27} | given
        return teacher.post("/v1/chat/completions", json=body)

    return ask
