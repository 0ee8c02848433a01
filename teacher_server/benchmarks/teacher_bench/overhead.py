"""What the service adds to its engine: the same streams through it and straight to the engine, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from rlt_bench.measure import Figures, Record, machine
from teacher_bench import server
from teacher_bench.engine import Pace
from teacher_bench.load import Load, apply

__all__ = ["compare", "run"]

T = TypeVar("T")

CLIENTS: Final = (1, 16, 64, 500)
INTERVALS: Final = (4, 1)  # tokens of an event, vLLM's --stream-interval: of one launched on a GPU, and vLLM's default
TOKENS: Final = 200
SECONDS: Final = 8.0
ALONE_S: Final = 12.0  # one stream after the other: 5 first tokens
ROUNDS: Final = 2


def run(command: str) -> Record:
    record = Record("teacher-overhead", command, machine())
    with server.model() as folder:
        for interval in INTERVALS:
            with server.paced(folder, interval=interval) as engine, server.teacher(folder, engine) as teacher:
                for clients in CLIENTS:
                    case = f"paced engine, {interval} token{'s' * (interval > 1)} an event"
                    compare(record, case, clients, _load(folder, engine, clients), _load(None, teacher.url, clients))
    record.notes.append(f"{TOKENS} tokens a stream; clients, service and engine share the cores")
    return record


def _load(folder: Path | None, url: str, clients: int) -> Callable[[int], Load]:
    """Clients begin spread over the time of one stream: later ones then begin at any time too."""
    pace = Pace(0, "")
    ramp = TOKENS * (pace.step_s + pace.sequence_s * clients)
    prompt = server.prompt(folder) if folder else ()
    return lambda seed: Load(
        url, clients, ramp, seconds=SECONDS if clients > 1 else ALONE_S, max_tokens=TOKENS, prompt=prompt, seed=seed
    )


def compare(
    record: Record, case: str, clients: int, bare: Callable[[int], Load], served: Callable[[int], Load]
) -> None:
    """Both ways in turns; the row has the medians of the rounds."""
    apply(replace(served(0), ramp_s=0.0, seconds=0.0, streams=clients, max_tokens=2))
    rounds = [(apply(bare(2 * i)), apply(served(2 * i + 1))) for i in range(ROUNDS)]
    failed = sum(each.failed for pair in rounds for each in pair)
    if failed:
        raise SystemExit(f"{failed} streams failed: {[e.first_failure for pair in rounds for e in pair]}")
    direct, through = zip(*rounds, strict=True)
    figures: Figures = {
        "bare tokens/s": _median(direct, lambda r: r.tokens_per_s),
        "served tokens/s": _median(through, lambda r: r.tokens_per_s),
        "share": f"{_median(rounds, lambda pair: pair[1].tokens_per_s / pair[0].tokens_per_s):.1%}",
        "bare first p50 ms": _median(direct, lambda r: r.first_p50_ms),
        "bare first p95 ms": _median(direct, lambda r: r.first_p95_ms),
        "added p50 ms": _median(rounds, lambda pair: pair[1].first_p50_ms - pair[0].first_p50_ms),
        "added p95 ms": _median(rounds, lambda pair: pair[1].first_p95_ms - pair[0].first_p95_ms),
    }
    record.add(case, f"{clients} stream{'s' * (clients > 1)} at once", **figures)


def _median(values: Iterable[T], of: Callable[[T], float]) -> float:
    return statistics.median(map(of, values))
