"""Builds while everything that makes them is killed, frozen, emptied and cut off; see docs/chaos.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos.run import Report, run
from chaos.schedule import FULL, SHORT

SEED = 7


@pytest.mark.slow  # half a minute; the fast tests kill in tests/jobs/test_whole.py
@pytest.mark.timeout(1800)
def test_nothing_is_lost_and_nothing_doubled_when_processes_die(tmp_path: Path) -> None:
    _kept(run(SEED, SHORT, tmp_path / "world"), len(SHORT.must), SHORT.samples)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # five minutes on a busy machine
def test_nor_of_thousands_of_samples_with_every_kind_of_strike(tmp_path: Path) -> None:
    _kept(run(SEED, FULL, tmp_path / "world"), FULL.acts, FULL.samples)


def _kept(report: Report, strikes: int, samples: int) -> None:
    story = "\n".join([*report.wrong, *report.timeline])
    assert not report.wrong, story
    assert sum(report.strikes.values()) == strikes
    assert report.samples == samples
    assert report.landed > 0, story  # a build was open when something was struck
