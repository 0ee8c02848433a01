"""Who is struck, when, and for how long: a function of the seed and the size, and of nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["FULL", "KINDS", "SHORT", "Act", "Kind", "Size", "schedule"]

APIS = ("api",)
RELAYS = ("relay-1", "relay-2")
WORKERS = ("worker-1", "worker-2")
SERVERS = ("teacher", "reward")


class Kind(StrEnum):
    kill = "kill"  # SIGKILL to the process and all its children, started again after `down` seconds
    orphan = "orphan"  # SIGKILL to a worker's main process only: its children are left behind
    child = "child"  # SIGKILL to one child of a worker
    freeze = "freeze"  # SIGSTOP for up to two leases: it wakes believing that it still holds its shard
    flush = "flush"  # FLUSHALL: the broker forgets everything
    restart = "restart"  # immediate stop of Postgres (SIGQUIT, no checkpoint), which then recovers from its log
    cut = "cut"  # every connection to Postgres is ended by it
    away = "away"  # the store's folder is gone and a plain file stands in its place
    full = "full"  # the disk under the store is full
    double = "double"  # messages that were sent already are sent again


KINDS: dict[Kind, tuple[str, ...]] = {
    Kind.kill: (*APIS, *RELAYS, *WORKERS, *SERVERS, "valkey"),
    Kind.orphan: WORKERS,
    Kind.child: WORKERS,
    Kind.freeze: WORKERS,
    Kind.flush: ("valkey",),
    Kind.restart: ("postgres",),
    Kind.cut: ("postgres",),
    Kind.away: ("store",),
    Kind.full: ("store",),
    Kind.double: ("outbox",),
}
LONGER: dict[Kind, float] = {Kind.freeze: 2.0, Kind.away: 2.0, Kind.full: 2.0}
"""Outages that prove something only if they last: how many times the usual."""
SUDDEN = {Kind.child, Kind.flush, Kind.cut, Kind.double}
"""What is over as soon as it is done."""


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        problems, n: of the main build.
        given: rows of a second build, which scores explanations that exist already.
        span: seconds in which something is struck.
        acts: how many times; at least one of each (kind, target) of `must`.
        down: seconds of an outage, from and to.
        programs: of the service that run.
    """

    problems: int
    n: int
    given: int
    span: float
    acts: int
    down: tuple[float, float]
    must: tuple[tuple[Kind, str], ...]
    programs: tuple[str, ...] = (*APIS, *RELAYS, *WORKERS)

    @property
    def samples(self) -> int:
        return self.problems * self.n + self.given


FULL = Size(
    problems=500,
    n=4,
    given=40,
    span=34.0,
    acts=23,
    down=(0.5, 4.0),
    must=tuple((kind, target) for kind, targets in KINDS.items() for target in targets),
)
SHORT = Size(
    problems=60,
    n=4,
    given=20,
    span=6.0,
    acts=6,
    down=(0.3, 1.0),
    must=(
        (Kind.kill, "worker-1"),
        (Kind.kill, "valkey"),
        (Kind.kill, "teacher"),
        (Kind.flush, "valkey"),
        (Kind.restart, "postgres"),
        (Kind.double, "outbox"),
    ),
    programs=("api", "relay-1", "worker-1"),
)


@dataclass(frozen=True, order=True)
class Act:
    """One strike, `at` seconds after the first build was taken."""

    at: float
    kind: Kind
    target: str
    down: float

    @property
    def until(self) -> float:
        return self.at + self.down

    def __str__(self) -> str:
        return f"{self.kind} {self.target}" + (f" for {self.down:.1f} s" if self.down else "")


def schedule(seed: int, size: Size) -> list[Act]:
    """In order of time. No target is struck again before it is well; everything else may overlap."""
    dice = random.Random(seed)
    what = list(size.must)
    while len(what) < size.acts:
        kind = dice.choice(list(KINDS))
        what.append((kind, dice.choice(KINDS[kind])))
    dice.shuffle(what)
    times = sorted(dice.uniform(0.0, size.span) for _ in what)
    acts = [
        Act(round(at, 2), kind, target, _down(dice, kind, size)) for at, (kind, target) in zip(times, what, strict=True)
    ]
    return sorted(_apart(acts))


def _down(dice: random.Random, kind: Kind, size: Size) -> float:
    if kind in SUDDEN:
        return 0.0
    return round(dice.uniform(*size.down) * LONGER.get(kind, 1.0), 2)


def _apart(acts: list[Act]) -> list[Act]:
    """Each act put off until its target is well again."""
    well: dict[str, float] = {}
    placed = []
    for act in acts:
        at = round(max(act.at, well.get(act.target, 0.0)), 2)
        placed.append(Act(at, act.kind, act.target, act.down))
        well[act.target] = at + act.down + 1.0  # a second of life, so that it is more than a corpse that is struck
    return placed
