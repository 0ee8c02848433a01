"""Explain and score: each explanation scored while its siblings are generated, against generation alone, and against
scoring when all are there. The engines keep a pace; the samples of one seed are equally long in all three ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from rlt_bench.measure import Record, interleaved, machine, ratio
from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse
from rlt_client.schemas.reward import RewardItem, RewardRequest
from teacher_bench import server

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
    with server.model() as folder, server.paced(folder, shortest=SHORTEST, longest=LONGEST, interval=8) as engine:
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
    for way, taken in seconds.items():
        times = 1 / ratio(alone, taken)
        record.add(
            f"{case}, {questions} question{'s' * (questions > 1)} at once", way, s=min(taken), **{"times": times}
        )


class _Ways:
    def __init__(self, teacher: str, reward: str, questions: int) -> None:
        self._teacher, self._reward, self._questions = teacher, reward, questions
        self._calls = 0

    def generate(self) -> None:
        self._calls += 1  # once a round: all ways of a round have its seeds
        asyncio.run(self._all(lambda t, _, seed: self._explain(t, seed, score=False)))

    def overlapped(self) -> None:
        asyncio.run(self._all(lambda t, _, seed: self._explain(t, seed, score=True)))

    def serial(self) -> None:
        asyncio.run(self._all(self._explain_then_score))

    async def _all(self, ask: Callable) -> None:  # type: ignore[type-arg]
        async with AsyncTeacherClient(self._teacher) as teacher, AsyncRewardClient(self._reward) as reward:
            seeds = range(self._calls * self._questions, (self._calls + 1) * self._questions)
            await asyncio.gather(*(ask(teacher, reward, seed) for seed in seeds))

    async def _explain(self, teacher: AsyncTeacherClient, seed: int, *, score: bool) -> ExplainResponse:
        reply = await teacher.explain(_problem(seed, score=score))
        if score and any(each.score is None or each.score.reward is None for each in reply.explanations):
            raise SystemExit(f"not scored: {[each.score for each in reply.explanations]}")
        return reply

    async def _explain_then_score(self, teacher: AsyncTeacherClient, reward: AsyncRewardClient, seed: int) -> None:
        reply = await self._explain(teacher, seed, score=False)
        asked = _problem(seed, score=False)
        items = [
            RewardItem(question=asked.question, answer=asked.answer, teacher=e.teacher) for e in reply.explanations
        ]
        scored = await reward.score_all(RewardRequest(items=items, format="mini"))
        if any(item.reward is None for item in scored.items):
            raise SystemExit(f"not scored: {scored.items}")


def _problem(seed: int, *, score: bool) -> ExplainRequest:
    question = f"Q {seed % 61} A +5 B *3 C +11"
    return ExplainRequest(
        question=question,
        answer=str(seed % 61),
        n=SAMPLES,
        seed=seed,
        max_tokens=LONGEST,
        score=score,
        return_tokens=True,
    )
