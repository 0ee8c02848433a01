"""What an engine client makes of a teacher that is only half there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlt_client.errors import InvalidRequest, NotFound
from rlt_client.schemas.common import ModelRef, Problem, Timing
from rlt_client.schemas.generate import Generated, GenerateRequest, GenerateResponse
from rlt_trainer.config.rl import Rollout
from rlt_trainer.rl.engines import Ask, Completion, Failed, Published, TeacherEngine

WEIGHTS = Published(Path("/weights"), False, "sha256:1")
ASKS = [Ask([1, 2], seed) for seed in range(4)]
POLICY = ModelRef(name="policy", revision="sha256:1")


def problem(type: str, status: int) -> Problem:
    return Problem(type=type, title=type, status=status)


class Client:
    """A teacher that has a problem with some seeds, the first time that it is asked for them."""

    def __init__(self, problems: dict[int, Problem]) -> None:
        self._problems = problems
        self.asked: list[list[int]] = []

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        seeds = [item.seed or 0 for item in request.items]
        self.asked.append(seeds)
        items = [self._made(index, seed) for index, seed in enumerate(seeds)]
        timing = Timing(queue_ms=0, engine_ms=0, overhead_ms=0, total_ms=0)
        return GenerateResponse(items=items, policy=POLICY, timing=timing)

    def _made(self, index: int, seed: int) -> Generated:
        error = self._problems.pop(seed, None)
        made = {"token_ids": [seed], "logprobs": [-1.0]} if error is None else {"token_ids": [], "logprobs": []}
        return Generated(index=index, finish_reason="stop", policy_revision="sha256:1", error=error, **made)


@pytest.fixture
def engine(tmp_path: Path) -> TeacherEngine:
    return TeacherEngine(Rollout(weights=tmp_path), key=None, stop=[])


def given(engine: TeacherEngine, client: Any) -> Any:
    engine._client = client
    return client


async def test_items_that_an_engine_dropped_are_asked_for_again(engine: TeacherEngine) -> None:
    client = given(engine, Client({1: problem("engine_down", 503), 3: problem("engine_down", 503)}))
    made = await engine.generate(ASKS, WEIGHTS)
    assert [each.token_ids for each in made if isinstance(each, Completion)] == [[0], [1], [2], [3]]
    assert client.asked == [[0, 1, 2, 3], [1, 3]]


async def test_items_that_are_at_fault_are_not(engine: TeacherEngine) -> None:
    client = given(engine, Client({2: problem("context_overflow", 422)}))
    made = await engine.generate(ASKS, WEIGHTS)
    assert made[2] == Failed("context_overflow", "context_overflow")
    assert client.asked == [[0, 1, 2, 3]]


async def test_a_teacher_that_forgets_the_policy_twice_is_given_it_twice(
    engine: TeacherEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgets(Client):
        """Killed, and killed again while it works on what it was asked for a second time."""

        left = 2

        async def generate(self, request: GenerateRequest) -> GenerateResponse:
            if self.left:
                self.left -= 1
                raise NotFound("policy", type="policy_not_found")
            return await super().generate(request)

        async def policies(self) -> Any:
            return SimpleNamespace(policies=[])

    published = []

    async def publish(folder: Path, *, lora: bool) -> Published:
        published.append(folder)
        return WEIGHTS

    given(engine, Forgets({}))
    monkeypatch.setattr(engine, "publish", publish)
    made = await engine.generate(ASKS, WEIGHTS)
    assert [each.token_ids for each in made if isinstance(each, Completion)] == [[0], [1], [2], [3]]
    assert published == [WEIGHTS.folder] * 2


async def test_only_a_forgotten_policy_is_published_again(engine: TeacherEngine) -> None:
    class Elsewhere:
        async def generate(self, _: GenerateRequest) -> GenerateResponse:
            raise NotFound("no such route", type="not_found")

    given(engine, Elsewhere())
    with pytest.raises(NotFound, match="no such route"):
        await engine.generate(ASKS, WEIGHTS)


async def test_a_refusal_ends_it(engine: TeacherEngine) -> None:
    class Refuses:
        async def generate(self, _: GenerateRequest) -> GenerateResponse:
            raise InvalidRequest("temperature_too_low")

    given(engine, Refuses())
    with pytest.raises(InvalidRequest):
        await engine.generate(ASKS, WEIGHTS)
