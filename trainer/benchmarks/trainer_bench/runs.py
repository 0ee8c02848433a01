"""Runs of a trainer in processes of their own, and what their steps took."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Self

from trainer_bench.world import Settings, World

__all__ = ["GENERATING", "PUBLISHING", "STEP", "WAITING", "Ran", "Step", "Way", "Work", "run", "run_all", "tell"]

Step = dict[str, float]
"""Figures by TRL's names."""
Way = tuple[str, Settings]
"""A program, and what it is told beside the rest."""

STEP: Final = "step_time"  # TRL's: completions, rewards and update
GENERATING: Final = "time/generating_s"
WAITING: Final = "time/waiting_for_rewards_s"
PUBLISHING: Final = "time/publishing_s"
FIRST: Final = 1  # steps that are not counted: they load and compile


@dataclass(frozen=True, slots=True)
class Work:
    """What is trained on."""

    steps: int
    batch: int
    generations: int
    max_tokens: int
    micro_batch: int

    def __str__(self) -> str:
        groups = self.batch // self.generations
        return f"{self.batch} completions ({groups} x {self.generations}) of at most {self.max_tokens} tokens"

    @property
    def settings(self) -> Settings:
        return {
            "training.steps": self.steps,
            "training.batch_size": self.batch,
            "training.micro_batch_size": self.micro_batch,
            "training.learning_rate": 1e-6,
            "training.schedule": "constant",
            "grpo.generations": self.generations,
            "grpo.reference.sync_every": 0,
            "rollout.max_tokens": self.max_tokens,
            "rollout.concurrency": self.batch,
            "checkpoints.every": self.steps,
            "logging.to": [],
            "logging.completions_every": 0,
        }


@dataclass(frozen=True, slots=True)
class Ran:
    """The steps that count, and the most memory that the process took: of a GPU, where it has one."""

    steps: list[Step]
    peak_gib: float

    @classmethod
    def read(cls, checkpoint: Path) -> Self:
        """In the process that trained. Raises `ValueError`: no step is left to count."""
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        steps = [entry for entry in history if STEP in entry][FIRST:]
        if not steps:
            raise ValueError(f"want more than {FIRST} steps")
        return cls(steps, _peak_gib())


def run(program: str, world: World, work: Work, told: Settings, *, seed: int = 0) -> Ran:
    """`python -m trainer_bench.PROGRAM` with a configuration of `rlt-trainer rl`, to its end."""
    with TemporaryDirectory(dir=world.folder) as name:
        settings = {**world.settings, **work.settings, "seed": seed, "output": f"{name}/run", **told}
        config = Path(name) / "run.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        argv = [sys.executable, "-m", f"trainer_bench.{program}", "--config", str(config)]
        finished = subprocess.run(argv, check=False, text=True, capture_output=True)
        if finished.returncode:
            raise SystemExit(f"{program} ended with {finished.returncode}: {finished.stderr[-4000:]}")
        return Ran(**json.loads(finished.stdout.splitlines()[-1]))


def run_all(ways: Mapping[str, Way], world: World, work: Work, rounds: int) -> dict[str, list[Step]]:
    """The steps of each way, which run in turns: what disturbs one round disturbs all."""
    steps: dict[str, list[Step]] = {name: [] for name in ways}
    for seed in range(rounds):
        for name, (program, told) in ways.items():
            steps[name] += run(program, world, work, told, seed=seed).steps
    return steps


def tell(ran: Ran) -> None:
    """To the caller of `run`."""
    print(json.dumps(asdict(ran)))


def _peak_gib() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
