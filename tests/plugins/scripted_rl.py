"""Reinforcement learning without servers: engines and rewards that do what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlt_trainer.rl.engines import Ask, Completion, Failed, Published
from rlt_trainer.rl.problems import Problem
from rlt_trainer.rl.rewards import Rewarded

WEIGHTS = Published(Path("/published"), False, "sha256:1")


@dataclass
class ScriptedEngine:
    """Keeps the order of what it is asked, and the version that it was given last.

    `make` gets an ask and the number of asks before it.
    """

    make: Callable[[Ask, int], Completion | Failed]
    asked: list[Ask] = field(default_factory=list)
    published: list[tuple[Path, bool]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    async def generate(self, asks: Sequence[Ask], weights: Published) -> list[Completion | Failed]:
        first = len(self.asked)
        self.asked.extend(asks)
        await asyncio.sleep(0.002 * first)  # later ones end later
        self.events.append("made")
        made = [self.make(ask, first + place) for place, ask in enumerate(asks)]
        return [replace(each, revision=weights.revision) if _unnamed(each) else each for each in made]

    async def publish(self, folder: Path, *, lora: bool) -> Published:
        self.published.append((folder, lora))
        return Published(folder, lora, f"sha256:{len(self.published)}")

    async def aclose(self) -> None:
        self.events.append("closed")


@dataclass
class ScriptedRewards:
    worth: Callable[[Problem, Completion], Rewarded]
    events: list[str] = field(default_factory=list)

    async def score(self, problem: Problem, completion: Completion) -> Rewarded:
        self.events.append("scored")
        return self.worth(problem, completion)

    async def aclose(self) -> None:
        self.events.append("closed")


def _unnamed(made: Completion | Failed) -> bool:
    return isinstance(made, Completion) and not made.revision
