"""Which pieces are made, and what runs side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rlt_paper import further
from rlt_paper.arms import ARMS, SMALL, SOURCES, STUDIES, full
from rlt_paper.records import Records
from rlt_paper.servers import Stack, stack
from rlt_paper.study import Sizes, Study

__all__ = ["run_full", "run_small"]

Piece = tuple[str, Callable[[Stack], dict[str, Any]]]


def run_small(
    work: Path, records: Path, *, lanes: int = 2, only: Sequence[str] | None = None, sizes: Sizes | None = None
) -> Study:
    """The arms that carry the claim, one seed of the parts task."""
    study = Study("parts", "a", 1, work, Records(records), sizes or Sizes())
    _run(study, _chosen(_arms(study, SMALL), only), lanes)
    return study


def run_full(
    work: Path,
    records: Path,
    *,
    lanes: int,
    seeds: Iterable[int],
    studies: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> None:
    """Every piece that has no record yet, seed by seed."""
    for seed in seeds:
        for task, corpus in (STUDIES[name] for name in studies or STUDIES):
            study = Study(task, corpus, seed, work, Records(records))
            pieces = [*_arms(study, full(task, corpus)), *_sources(study), *_further(study)]
            _run(study, _chosen(pieces, only), lanes)


def _arms(study: Study, names: Sequence[str]) -> list[Piece]:
    """The longest first: lanes then end together."""
    ordered = sorted(names, key=lambda name: not ARMS[name].trained)
    return [(name, partial(study.run_arm, ARMS[name])) for name in ordered]


def _sources(study: Study) -> list[Piece]:
    if study.corpus != "a":
        return []
    return [(each.name, partial(study.run_source, each)) for each in SOURCES]


def _further(study: Study) -> list[Piece]:
    """After the arms, whose students and teachers they start from."""
    if study.corpus != "a":
        return []
    names = ("warm", f"rlt-{study.task.weight:g}")
    cold: list[Piece] = [(f"cold-{name}", partial(further.cold_start, study, name)) for name in names]
    return [*cold, *((f"transfer-{name}", partial(further.transfer, study, name)) for name in names)]


def _chosen(pieces: list[Piece], only: Sequence[str] | None) -> list[Piece]:
    return [piece for piece in pieces if only is None or piece[0] in only]


def _run(study: Study, pieces: Sequence[Piece], lanes: int) -> None:
    missing = [(name, make) for name, make in pieces if study.records.find(f"{study.name}/{name}") is None]
    if not missing:
        _say(f"{study.name}: every piece has its record below {study.records.folder}; another --records makes it again")
        return
    began = time.monotonic()
    study.prepare()
    _say(f"{study.name}: warm-up is there after {time.monotonic() - began:.0f} s")
    with stack(study.folder / "stack", study.warmup, study.work) as running, ThreadPoolExecutor(lanes) as pool:
        waiting = [pool.submit(_told, study, name, make, running) for name, make in missing]
        for each in waiting:
            each.result()
    _say(f"{study.name}: {len(missing)} pieces in {time.monotonic() - began:.0f} s")


def _told(study: Study, name: str, make: Callable[[Stack], dict[str, Any]], running: Stack) -> None:
    began = time.monotonic()
    figures = make(running)["figures"]
    shown = "  ".join(f"{key} {figures[key]:.3f}" for key in figures)
    _say(f"{study.name}/{name}: {time.monotonic() - began:.0f} s  {shown}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
