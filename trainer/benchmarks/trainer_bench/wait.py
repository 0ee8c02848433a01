"""How long a step waits for rewards after its last completion, with overlap and without, in one run.

First before engines that keep a pace: the trainer's own roll-out, its clients, and both servers. No update is made
there, so the share is of the roll-out alone; of a whole step it is smaller. Then whole steps of the tiny models.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rlt_bench.measure import Figures, Record, interleaved, machine
from rlt_client.aio import AsyncTeacherClient
from rlt_client.formats import shipped_formats
from rlt_client.prompts import TextCodec
from rlt_trainer.config.rl import Reward, Rollout
from rlt_trainer.config.sections import TextRole
from rlt_trainer.rl.engines import Published, TeacherEngine
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards import ServerRewards
from rlt_trainer.rl.rollout import Rolled, RollOut, sample_seed
from rlt_trainer.texts import Writer
from rlt_trainer.tiny import ensure_warmup, problems
from teacher_bench import server
from trainer_bench.runs import GENERATING, STEP, WAITING, Work, run_all
from trainer_bench.world import FORMAT, beside

__all__ = ["run"]

WAYS: Final = {"with overlap": True, "without": False}
GROUPS, GENERATIONS = 8, 16
SHORTEST, LONGEST = 60, 400  # tokens
ROUNDS: Final = 5
PACES: Final = {
    25_000.0: "paced, scored at 25k tokens/s",  # a 7B student on one H100, by its operations
    5_000.0: "paced, scored at 5k tokens/s",
}
REAL: Final = Work(steps=8, batch=64, generations=16, max_tokens=27, micro_batch=64)
REAL_ROUNDS: Final = 2


def run(
    command: str,
    *,
    groups: int = GROUPS,
    longest: int = LONGEST,
    rounds: int = ROUNDS,
    real: Work = REAL,
    real_rounds: int = REAL_ROUNDS,
) -> Record:
    record = Record("trainer-wait", command, machine())
    with server.model() as folder, server.paced(folder, shortest=SHORTEST, longest=longest) as engine:
        for pace, case in PACES.items():
            with server.scoring(folder, pace) as reward, server.teacher(folder, engine) as teacher:
                _paced(record, case, _RollOuts(folder, teacher.url, reward.url, groups, longest), rounds)
    _real(record, real, real_rounds)
    record.notes += [
        f"paced: {groups * GENERATIONS} completions ({groups} x {GENERATIONS}) of {SHORTEST} to {longest} tokens; "
        f"medians of {rounds} rounds; no update is made, so the share is of the roll-out alone",
        f"real: {real}; the 147k-parameter models; trainer and servers share the cores",
    ]
    return record


def _paced(record: Record, case: str, ways: _RollOuts, rounds: int) -> None:
    interleaved({name: ways.way(name, overlap) for name, overlap in WAYS.items()}, rounds=rounds)
    for name in WAYS:
        rolled = ways.rolled[name][1:]  # `interleaved` does not count the first round either
        record.add(
            case,
            name,
            **_figures([each.generating_s for each in rolled], [each.waiting_s for each in rolled]),
        )


def _figures(generating: Sequence[float], waiting: Sequence[float], steps: Sequence[float] | None = None) -> Figures:
    """Medians, and the share of all the time; `steps` None: generating and waiting are all there is."""
    whole = steps or [one + other for one, other in zip(generating, waiting, strict=True)]
    return {
        "step s": statistics.median(steps) if steps else "",
        "generating s": statistics.median(generating),
        "waiting s": statistics.median(waiting),
        "waiting": f"{sum(waiting) / sum(whole):.1%}",
    }


class _RollOuts:
    """All ways of a round have the same seeds, so completions of the same lengths, and questions of their own: the
    reward server answers what it was asked before from a cache."""

    def __init__(self, model: Path, teacher: str, reward: str, groups: int, longest: int) -> None:
        self._writer = Writer(TextCodec.of_folder(model), shipped_formats()[FORMAT])
        self._rollout = Rollout(
            url=teacher,
            weights=model,  # nothing is published
            policy=model.name,
            max_tokens=longest,
            concurrency=groups * GENERATIONS,
        )
        self._reward = Reward(url=reward)
        self._groups = groups
        self.rolled: dict[str, list[Rolled]] = {name: [] for name in WAYS}

    def way(self, name: str, overlap: bool) -> Callable[[], None]:
        def roll() -> None:
            number = len(self.rolled[name])
            asked = self._problems(f"{number} {name}"), self._seeds(number)
            self.rolled[name].append(asyncio.run(self._roll(*asked, overlap)))

        return roll

    async def _roll(self, problems: Sequence[Problem], seeds: Sequence[int], overlap: bool) -> Rolled:
        engine = TeacherEngine(self._rollout, key=None, stop=[self._writer.format.teacher.close])
        rewards = ServerRewards(self._reward, key=None, writer=self._writer, temperature=self._rollout.temperature)
        roll_out = RollOut(engine, rewards, overlap=overlap, together=self._rollout.together)
        try:
            rolled = await roll_out(problems, seeds, await self._weights())
        finally:
            await engine.aclose()
            await rewards.aclose()
        if missing := [each.rewarded.failure for each in rolled.samples if each.rewarded.reward is None]:
            raise SystemExit(f"{len(missing)} completions have no reward: {missing[0]}")
        return rolled

    async def _weights(self) -> Published:
        """What the server was started with."""
        async with AsyncTeacherClient(self._rollout.url) as client:
            [first] = (await client.policies()).policies
        return Published(self._rollout.weights, False, first.revision)

    def _seeds(self, number: int) -> list[int]:
        return [sample_seed(0, number, place) for place in range(self._groups * GENERATIONS)]

    def _problems(self, seed: str) -> list[Problem]:
        drawn = problems(self._groups, seed=random.Random(seed).randrange(2**31))  # noqa: S311 - no secret
        return [each for one in drawn for each in [self._problem(one.question, one.answer)] * GENERATIONS]

    def _problem(self, question: str, answer: str) -> Problem:
        return Problem(question, answer, None, self._writer.prompt(TextRole.teacher, question, answer))


def _real(record: Record, work: Work, rounds: int) -> None:
    with beside(ensure_warmup()) as world:
        ways = {name: ("ours", {"model.dtype": "float32", "reward.overlap": overlap}) for name, overlap in WAYS.items()}
        rans = run_all(ways, world, work, rounds)
    for name, steps in rans.items():
        columns = [[step[figure] for step in steps] for figure in (GENERATING, WAITING, STEP)]
        record.add("real, 147k parameters", name, **_figures(*columns))
