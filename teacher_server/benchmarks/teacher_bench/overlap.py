"""Explain and score: each explanation scored while its siblings are generated, against generation alone, and against
scoring when all are there. The engines keep a pace; the samples of one seed are equally long in all three ways."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from rlt_bench.measure import Record, interleaved, machine, ratio
from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse
from rlt_client.schemas.reward import RewardItem, RewardRequest, Score
from teacher_bench import server
from teacher_bench.load import OPERATIONS

__all__ = ["run"]

SAMPLES: Final = 8
QUESTIONS: Final = (1, 8)  # at once
ROUNDS: Final = 5
SHORTEST, LONGEST = 60, 400
PACES: Final = {
    25_000.0: "scored at 25k tokens/s",  # a 7B student on one H100, by its operations
    5_000.0: "scored at 5k tokens/s",
}


def run(command: str) -> Record:
    record = Record("teacher-overlap", command, machine())
    with server.model() as folder, server.paced(folder, shortest=SHORTEST, longest=LONGEST) as engine:
        for pace, case in PACES.items():
            with (
                server.scoring(folder, pace) as reward,
                server.teacher(folder, engine, "--reward-url", reward.url) as teacher,
            ):
                for questions in QUESTIONS:
                    _measure(record, case, questions, _Ways(teacher.url, reward.url, questions))
    record.notes.append(f"{SAMPLES} samples a question of {SHORTEST} to {LONGEST} tokens; medians of {ROUNDS} rounds")
    return record


def _measure(record: Record, case: str, questions: int, ways: _Ways) -> None:
    seconds = interleaved(
        {"generation alone": ways.generate, "explain and score": ways.overlapped, "one after the other": ways.serial},
        rounds=ROUNDS,
    )
    alone = seconds["generation alone"]
    name = f"{case}, {questions} question{'s' * (questions > 1)} at once"
    for way, taken in seconds.items():
        record.add(name, way, **{"s, the fastest": min(taken), "times generation alone": 1 / ratio(alone, taken)})


class _Ways:
    """All ways of a round have the same seeds, so samples of the same lengths, and questions of their own: the reward
    server answers what it was asked before from a cache."""

    def __init__(self, teacher: str, reward: str, questions: int) -> None:
        self._teacher, self._reward, self._questions = teacher, reward, questions
        self._round = 0

    def generate(self) -> None:
        self._round += 1
        asyncio.run(self._all(0, self._explain))

    def overlapped(self) -> None:
        asyncio.run(self._all(1, self._explain_and_score))

    def serial(self) -> None:
        asyncio.run(self._all(2, self._explain_then_score))

    async def _all(self, way: int, ask: _Ask) -> None:
        async with AsyncTeacherClient(self._teacher) as teacher, AsyncRewardClient(self._reward) as reward:
            seeds = range(self._round * self._questions, (self._round + 1) * self._questions)
            await asyncio.gather(*(ask(teacher, reward, _problem(seed, way)) for seed in seeds))

    async def _explain(
        self, teacher: AsyncTeacherClient, _: AsyncRewardClient, request: ExplainRequest
    ) -> ExplainResponse:
        return await teacher.explain(request)

    async def _explain_and_score(
        self, teacher: AsyncTeacherClient, reward: AsyncRewardClient, request: ExplainRequest
    ) -> ExplainResponse:
        reply = await self._explain(teacher, reward, request.model_copy(update={"score": True}))
        _all_scored([each.score for each in reply.explanations])
        return reply

    async def _explain_then_score(
        self, teacher: AsyncTeacherClient, reward: AsyncRewardClient, request: ExplainRequest
    ) -> ExplainResponse:
        reply = await self._explain(teacher, reward, request)
        question, answer = request.question, request.answer
        items = [RewardItem(question=question, answer=answer, teacher=each.teacher) for each in reply.explanations]
        _all_scored((await reward.score_all(RewardRequest(items=items, format="mini"))).items)
        return reply


_Ask = Callable[[AsyncTeacherClient, AsyncRewardClient, ExplainRequest], Coroutine[Any, Any, ExplainResponse]]


def _all_scored(scores: Sequence[Score | None]) -> None:
    if any(score is None or score.reward is None for score in scores):
        raise SystemExit(f"not scored: {scores}")


def _problem(seed: int, way: int) -> ExplainRequest:
    draw = random.Random(f"{seed} {way}")  # noqa: S311 - no secret
    steps = " ".join(f"{letter} {draw.choice(OPERATIONS)}" for letter in "ABCDEFGH")
    return ExplainRequest(
        question=f"Q {draw.randrange(61)} {steps}",
        answer=str(draw.randrange(61)),
        n=SAMPLES,
        seed=seed,
        max_tokens=LONGEST,
        return_tokens=True,
    )
