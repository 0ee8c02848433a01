"""What the students are taught by: teachers and solvers, trained or not, and traces that nobody's model wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["ARMS", "SMALL", "SOURCES", "STUDIES", "Arm", "Source", "full"]

STEPS: Final = 80
STUDIES: Final = {"parts-a": ("parts", "a"), "chain-a": ("chain", "a"), "parts-b": ("parts", "b")}  # task, corpus


@dataclass(frozen=True, slots=True)
class Arm:
    """A model trained by GRPO, or the warm-up as it is where there is no reward; its raw traces teach a student."""

    name: str
    title: str
    role: str = "teacher"
    reward: dict[str, Any] = field(default_factory=dict)
    """The configuration's table `[reward]`."""
    steps: int = STEPS

    @property
    def trained(self) -> bool:
        return bool(self.reward)


@dataclass(frozen=True, slots=True)
class Source:
    """Traces written by a program, of a quality that is known; `shares` None: no thought at all."""

    name: str
    title: str
    shares: dict[str, float] | None


def rlt(weight: float) -> Arm:
    """A teacher with the paper's reward at one λ."""
    return Arm(f"rlt-{weight:g}", f"RLT, λ {weight:g}", reward={"spec": {"preset": "rlt", "lambda": weight}})


WARM: Final = Arm("warm", "warm-up teacher, no RL")
SS: Final = Arm("ss", "r_SS only", reward={"spec": {"preset": "ss_only"}})
KL: Final = Arm("kl", "r_KL only", reward={"spec": {"preset": "kl_only"}})
SOLVER: Final = Arm("solver", "solver, RL with 0/1", "student", {"source": "answer", "match": "exact"})
DENSE: Final = Arm("solver-parts", "solver, RL by parts", "student", {"source": "answer", "match": "parts"})

ARMS: Final = {arm.name: arm for arm in (WARM, rlt(1), rlt(2.5), rlt(3), rlt(5), rlt(8), SS, KL, SOLVER, DENSE)}
SMALL: Final = ("warm", "rlt-1", "ss", "solver", "solver-parts")

SOURCES: Final = (
    Source("oracle", "good throughout", {"good": 1.0, "digression": 0.0}),
    Source("g80-s20", "good .8, skip .2", {"good": 0.8, "skip": 0.2}),
    Source("g80-l20", "good .8, leak .2", {"good": 0.8, "leak": 0.2}),
    Source("g50-s50", "good .5, skip .5", {"good": 0.5, "skip": 0.5}),
    Source("g50-l50", "good .5, leak .5", {"good": 0.5, "leak": 0.5}),
    Source("g25-s75", "good .25, skip .75", {"good": 0.25, "skip": 0.75}),
    Source("leak", "leak throughout", {"leak": 1.0}),
    Source("answer", "the answer after a word of filler", None),
)


def full(task: str, corpus: str) -> tuple[str, ...]:
    """The arms of one task and corpus in `paper-full`."""
    if corpus == "b":  # beside a: where the solver's reward is no longer too rare
        return ("warm", "rlt-2.5", "solver")
    solvers = ("solver", "solver-parts") if task == "parts" else ("solver",)  # a chain's answer has one part
    return ("warm", "rlt-1", "rlt-2.5", "rlt-3", "rlt-5", "rlt-8", "ss", "kl", *solvers)
