"""The engine against the naive way and against a padded batch, on a CPU, same dtype, same threads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch

from reward_bench import baselines, ceiling
from reward_bench.ceiling import Count
from reward_bench.shapes import GOLDEN, QWEN_05B, Shape, random_model
from reward_bench.workload import Workload
from rlt_bench.measure import Figures, Record, interleaved, machine, ratio
from rlt_client.errors import ItemError
from rlt_reward_server.engine.scorer import CausalScorer

__all__ = ["Bench", "disagreement", "run"]

CASES: Final = (
    (GOLDEN, Workload(4, 16, 120, 170, 20), 5),
    (QWEN_05B, Workload(1, 16, 120, 170, 20), 3),
)
AS_RELEASED: Final = "naive, garbage collected"
NAIVE: Final = "naive"
PADDED: Final = "padded + logits_to_keep"
AGREE: Final = 2e-3  # float32, T = 0.7, between ways that add in another order


class Bench:
    """One shape, ready to score a workload in every way."""

    def __init__(
        self, shape: Shape, work: Workload, dtype: torch.dtype, device: str, *, max_batch_tokens: int = 16_384
    ) -> None:
        self.shape = shape
        self.student, self.teacher = (random_model(shape, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
        self.use(work)
        scorer = partial(CausalScorer, max_batch_tokens=max_batch_tokens)
        self._scorers = scorer(self.student), scorer(self.teacher)

    def use(self, work: Workload) -> None:
        self.work = work
        self._passes = work.passes(self.shape.vocab)

    def naive(self, *, collect: bool = False) -> list[list[float]]:
        return baselines.naive(self.student, self.teacher, zip(*self._passes, strict=True), collect=collect)

    def padded(self, batch: int) -> list[list[float]]:
        student, teacher = self._passes
        baselines.padded(self.teacher, teacher, batch=batch)
        return baselines.padded(self.student, student, batch=batch)

    def sent(self) -> list[list[float] | ItemError]:
        return self._scorers[0].log_probs(self._passes[0])

    def hosted(self) -> list[list[float] | ItemError]:
        self._scorers[1].log_probs(self._passes[1])
        return self.sent()

    def needed(self, *, hosted: bool) -> Count:
        return ceiling.needed(self.shape, self.work, hosted=hosted)


def run(command: str, *, cases: Sequence[tuple[Shape, Workload, int]] = CASES) -> Record:
    """Every case, float32."""
    record = Record("reward-cpu", command, machine())
    for shape, work, rounds in cases:
        _case(record, Bench(shape, work, torch.float32, "cpu"), rounds)
    return record


def _case(record: Record, bench: Bench, rounds: int) -> None:
    worst = disagreement(bench.naive(), bench.sent())
    if not worst < AGREE:
        raise SystemExit(f"{bench.shape.name}: the engine's log-probs are off by {worst:.2g}: nothing to compare")
    collected = {AS_RELEASED: partial(bench.naive, collect=True)} if bench.shape is GOLDEN else {}  # else it is nothing
    ways: dict[str, Callable[[], Any]] = {
        **collected,
        NAIVE: bench.naive,
        PADDED: partial(bench.padded, min(bench.work.samples, 16)),
        "engine, log-probs sent": bench.sent,
        "engine, teacher hosted": bench.hosted,
    }
    seconds = interleaved(ways, rounds=rounds)
    record.notes.append(
        f"{bench.shape.name}: {bench.work}; float32; {rounds} rounds; largest difference of a log-prob {worst:.1g}"
    )
    for way, took in seconds.items():
        _row(record, bench, way, took, seconds)


def _row(record: Record, bench: Bench, way: str, took: list[float], seconds: dict[str, list[float]]) -> None:
    figures: Figures = {"samples/s": bench.work.samples / statistics.median(took)}
    if way.startswith("engine"):
        needed = bench.needed(hosted="hosted" in way).total
        if AS_RELEASED in seconds:
            figures["x collected"] = ratio(seconds[AS_RELEASED], took)
        for name, baseline, counted in (
            ("naive", seconds[NAIVE], ceiling.naive(bench.shape, bench.work)),
            ("padded", seconds[PADDED], ceiling.padded(bench.shape, bench.work)),
        ):
            times, best = ratio(baseline, took), counted.total / needed
            figures |= {f"x {name}": times, f"ceiling ({name})": best, f"of it ({name})": f"{times / best:.0%}"}
    record.add(bench.shape.name, way, **figures)


def disagreement(wanted: list[list[float]], given: Sequence[list[float] | ItemError]) -> float:
    """Largest difference of a log-prob; not a number where an item failed."""
    worst = 0.0
    for row, found in zip(wanted, given, strict=True):
        if isinstance(found, ItemError):
            return float("nan")
        worst = max(worst, *(abs(a - b) for a, b in zip(row, found, strict=True)))
    return worst
