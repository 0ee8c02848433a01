"""A seed decides everything, and no run leaves a kind of strike out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from chaos.schedule import FULL, KINDS, SHORT, Act, Kind, Size, schedule


@pytest.mark.parametrize("size", [FULL, SHORT], ids=["full", "short"])
def test_a_seed_gives_the_same_schedule_each_time_and_another_seed_another(size: Size) -> None:
    assert schedule(5, size) == schedule(5, size)
    assert schedule(5, size) != schedule(6, size)


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_strikes_every_target_of_its_own_in_a_full_run(seed: int) -> None:
    acts = schedule(seed, FULL)
    assert {(act.kind, act.target) for act in acts} == {(kind, target) for kind in KINDS for target in KINDS[kind]}
    assert len(acts) == FULL.acts
    assert acts == sorted(acts)


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_struck_while_down(seed: int) -> None:
    acts = schedule(seed, FULL)
    for target in {act.target for act in acts}:
        mine = [act for act in acts if act.target == target]
        assert all(later.at - earlier.until > 0.99 for earlier, later in pairwise(mine))  # a second, rounded


def test_what_is_over_at_once_has_no_end_and_a_frozen_worker_sleeps_longer_than_others_are_dead() -> None:
    acts = [act for seed in range(20) for act in schedule(seed, FULL)]
    assert all((act.down == 0) == (act.kind in (Kind.child, Kind.flush, Kind.cut, Kind.double)) for act in acts)
    assert all(act.down <= FULL.down[1] for act in acts if act.kind is Kind.kill)
    assert max(act.down for act in acts if act.kind is Kind.freeze) > FULL.down[1]
    assert str(Act(1.0, Kind.kill, "api", 2.0)) == "kill api for 2.0 s"
