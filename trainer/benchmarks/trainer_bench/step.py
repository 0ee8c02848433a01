"""A step of GRPO by services against TRL's trainer on its own, in one run: the same model, prompts and batch."""

from __future__ import annotations

import statistics
from typing import Final

from rlt_bench.measure import Figures, Record, machine
from rlt_trainer.tiny import ensure_warmup
from trainer_bench.runs import GENERATING, PUBLISHING, STEP, WAITING, Step, Work, run_all
from trainer_bench.world import Settings, beside

__all__ = ["run"]

CASES: Final = (
    Work(steps=8, batch=64, generations=16, max_tokens=27, micro_batch=64),
    Work(steps=6, batch=256, generations=16, max_tokens=27, micro_batch=64),  # the miniature's batch
)
ROUNDS: Final = 3
PLAIN: Final = "TRL alone, a constant reward"
OURS: Final = "rlt-trainer rl, two servers"
TOLD: Final[Settings] = {"model.dtype": "float32", "model.gradient_checkpointing": False}


def run(command: str, *, cases: tuple[Work, ...] = CASES, rounds: int = ROUNDS) -> Record:
    record = Record("trainer-step", command, machine())
    with beside(ensure_warmup()) as world:
        for work in cases:
            rans = run_all({PLAIN: ("plain", TOLD), OURS: ("ours", TOLD)}, world, work, rounds)
            alone = statistics.median(step[STEP] for step in rans[PLAIN])
            for way, steps in rans.items():
                record.add(f"147k parameters, {work.batch} completions", way, **_figures(steps, alone))
    record.notes += [
        *map(str, cases),
        f"medians of {rounds} runs of each way in turns, first steps left out",
        "trainer and servers share the cores; TRL alone has neither rewards nor a policy to publish",
    ]
    return record


def _figures(steps: list[Step], alone: float) -> Figures:
    def median(name: str) -> float | str:
        return statistics.median(step[name] for step in steps) if name in steps[0] else ""

    took = statistics.median(step[STEP] for step in steps)
    return {
        "step s": took,
        "times TRL alone": took / alone,
        "generating s": median(GENERATING),
        "waiting s": median(WAITING),
        "publishing s": median(PUBLISHING),
        "tokens a completion": median("completions/mean_length"),
    }
