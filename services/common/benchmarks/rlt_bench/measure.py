"""Timing of ways side by side, and the records that are kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["Figures", "Record", "Row", "figure", "interleaved", "machine", "ratio"]

Figures = dict[str, float | str | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: what ran, and its figures; None is a figure that was not measured."""

    case: str
    way: str
    figures: Figures


@dataclass(slots=True)
class Record:
    """What one benchmark measured, where and how."""

    name: str
    command: str
    machine: dict[str, str]
    when: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d"))
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def add(self, case: str, way: str, **figures: float | str | None) -> None:
        """Keeps a row and prints it, so that a run that is cut off has said what it knew."""
        self.rows.append(Row(case, way, figures))
        shown = "  ".join(f"{name} {figure(value)}" for name, value in figures.items())
        print(f"{case:32} {way:28} {shown}", flush=True)

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path


def figure(value: float | str | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> dict[str, str]:
    """The hardware and the versions that a figure depends on."""
    import torch  # not by those who only read records

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
        **gpu,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def interleaved(ways: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round that is not counted: what disturbs one round disturbs all."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for counted in [False] + [True] * rounds:
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            _wait()
            if counted:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(baseline: list[float], other: list[float]) -> float:
    """Median of the rounds' own ratios: how many times faster `other` is."""
    return statistics.median(b / o for b, o in zip(baseline, other, strict=True))
