"""A Qwen2.5-7B shape in bf16 on one GPU: tokens/s, share of the measured matmul rate, ratios, peak memory.

Runs unattended and without network; of heavy packages it needs PyTorch and transformers only.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from reward_bench import ceiling
from reward_bench.cpu import Bench, disagreement
from reward_bench.shapes import QWEN_7B, Shape
from reward_bench.workload import Workload
from rlt_bench.measure import Figures, Record, figure, machine

__all__ = ["CASES", "run"]

CASES: Final = (
    Workload(4, 16, 128, 352, 32),
    Workload(2, 8, 512, 3456, 128),
    Workload(1, 4, 512, 15_744, 128),
)
"""Sequences of 512, 4k and 16k tokens."""
ROUNDS: Final = 3
MATMUL: Final = 8192
MATMUL_REPEATS: Final = 50
BATCH_TOKENS: Final = 32_768


@dataclass(frozen=True, slots=True)
class _Took:
    """Median seconds and peak memory; `seconds` None: it did not fit."""

    seconds: float | None
    peak_gib: float | None

    def figures(self, work: Workload) -> Figures:
        if self.seconds is None:
            return {"tokens/s": "out of memory", "peak GiB": "out of memory"}
        return {"tokens/s": work.tokens / self.seconds, "peak GiB": self.peak_gib}


def run(command: str, *, shape: Shape = QWEN_7B, cases: Sequence[Workload] = CASES, device: str = "cuda") -> Record:
    """Every length, in every way.

    `tokens/s` counts what a reader counts: the tokens of all sequences of one model, whatever was really computed.
    """
    record = Record("reward-gpu", command, machine())
    rate = _matmul_rate(device)
    record.notes.append(f"bf16 matmul of {MATMUL} x {MATMUL} on this device: {rate / 1e12:.3g} TFLOP/s")
    bench = Bench(shape, cases[0], torch.bfloat16, device, max_batch_tokens=BATCH_TOKENS)
    for work in cases:
        bench.use(work)
        naive, padded, wanted = _baselines(record, bench, device)
        _engine(record, bench, naive, padded, rate, device)
        worst = disagreement(wanted, bench.sent()) if wanted else None
        record.notes.append(f"{work}: largest difference of a log-prob from the naive way's, bf16: {figure(worst)}")
    return record


def _baselines(record: Record, bench: Bench, device: str) -> tuple[_Took, _Took, list[list[float]] | None]:
    naive, wanted = _measured(bench.naive, device)
    padded = _Took(None, None)
    for batch in (16, 8, 4, 2, 1):
        padded, _ = _measured(partial(bench.padded, batch), device)
        if padded.seconds is not None:
            break
    record.add(_case(bench), "naive", **naive.figures(bench.work))
    record.add(_case(bench), f"padded by {batch} + logits_to_keep", **padded.figures(bench.work))
    return naive, padded, wanted


def _engine(record: Record, bench: Bench, naive: _Took, padded: _Took, rate: float, device: str) -> None:
    for way, run_it, hosted in (
        ("engine, log-probs sent", bench.sent, False),
        ("engine, teacher hosted", bench.hosted, True),
    ):
        took, _ = _measured(run_it, device)
        needed = bench.needed(hosted=hosted).total
        figures = took.figures(bench.work)
        if took.seconds is not None:
            figures["of matmul rate"] = f"{needed / took.seconds / rate:.0%}"
            for name, baseline, counted in (
                ("naive", naive, ceiling.naive(bench.shape, bench.work)),
                ("padded", padded, ceiling.padded(bench.shape, bench.work)),
            ):
                figures[f"x {name}"] = baseline.seconds / took.seconds if baseline.seconds else None
                figures[f"ceiling ({name})"] = counted.total / needed
        record.add(_case(bench), way, **figures)


def _case(bench: Bench) -> str:
    return f"{bench.shape.name}, {bench.work.length} tokens"


def _measured(run_it: Callable[[], Any], device: str) -> tuple[_Took, Any]:
    """Median of the rounds after one that is not counted, and the result."""
    gc.collect()
    _cuda(device, "empty_cache")
    _cuda(device, "reset_peak_memory_stats")
    try:
        result = run_it()
        seconds = statistics.median(_timed(run_it, device) for _ in range(ROUNDS))
    except torch.OutOfMemoryError:
        return _Took(None, None), None
    peak = _cuda(device, "max_memory_allocated")
    return _Took(seconds, None if peak is None else peak / 2**30), result


def _timed(run_it: Callable[[], Any], device: str) -> float:
    _cuda(device, "synchronize")
    began = time.perf_counter()
    run_it()
    _cuda(device, "synchronize")
    return time.perf_counter() - began


def _cuda(device: str, function: str) -> Any:
    return getattr(torch.cuda, function)() if device.startswith("cuda") else None


def _matmul_rate(device: str) -> float:
    """Operations a second of a large square bf16 matmul, the best that the matrices of a model can hope for."""
    size, repeats = (MATMUL, MATMUL_REPEATS) if device.startswith("cuda") else (512, 3)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    seconds = _timed(lambda: [a @ b for _ in range(repeats)], device)
    return 2 * size**3 * repeats / seconds
