"""What a run makes of a reward server whose student changes under it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlt_client.errors import NotFound
from rlt_trainer.config.rl import Reward
from rlt_trainer.errors import StaleStudent
from rlt_trainer.rl.engines import Completion
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards.server import TRIES, ServerRewards
from rlt_trainer.rl.rewards.students import Student

OURS = Student("sha256:ours", Path("/student"))
PROBLEM = Problem("question", "answer", None, [])
COMPLETION = Completion([1], [-1.0], "stop", "sha256:1")


class Server:
    """Serves in turn the students of these revisions; the run's own from when that is loaded on."""

    def __init__(self, *students: str | None) -> None:
        self._students = list(students)
        self.loaded = 0

    async def score_item(self, *_: Any, **__: Any) -> Any:
        student = self._students.pop(0) if self._students else OURS.revision
        if student is None:
            raise NotFound("student", type="unknown_student")
        score = SimpleNamespace(reward=0.5, components=None, flags=[], error=None, status="ok")
        return SimpleNamespace(score=score, student=SimpleNamespace(revision=student))

    async def load_model(self, *_: Any) -> Any:
        self.loaded += 1
        return SimpleNamespace(model=SimpleNamespace(revision=OURS.revision))


async def rewards(server: Any) -> ServerRewards:
    writer: Any = SimpleNamespace(format=SimpleNamespace(name="format"))
    made = ServerRewards(Reward(student="student"), key=None, writer=writer, temperature=0.7)
    made._client = server
    await made.hold(OURS)
    return made


@pytest.mark.parametrize("first", [None, "sha256:base"])
async def test_a_server_that_loses_the_student_twice_is_given_it_twice(first: str | None) -> None:
    server = Server(first, "sha256:base")
    rewarded = await (await rewards(server)).score(PROBLEM, COMPLETION)
    assert (rewarded.reward, rewarded.student) == (0.5, OURS.revision)
    assert server.loaded == 3


async def test_somebody_else_who_exchanges_it_ends_the_run() -> None:
    server = Server(*["sha256:theirs"] * TRIES)
    with pytest.raises(StaleStudent, match="somebody else exchanges it"):
        await (await rewards(server)).score(PROBLEM, COMPLETION)
