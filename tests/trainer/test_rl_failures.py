"""Completions without a reward."""

from __future__ import annotations

import json

import pytest

from rlt_trainer.errors import RewardsMissing
from rlt_trainer.rl.failures import Failures

STEP = [None] * 100


def failing(count: int, cause: str = "too_long") -> list[str | None]:
    return [cause] * count + [None] * (100 - count)


def test_up_to_the_share_is_counted_and_borne() -> None:
    failures = Failures(0.02, window=10)
    for _ in range(30):
        assert failures.saw(failing(2)) == 2  # 2 % for ever


def test_more_than_the_share_of_a_window_ends_the_run() -> None:
    """10 steps of 100 completions: 20 are 2 %, 21 are more."""
    failures = Failures(0.02, window=10)
    for _ in range(9):
        failures.saw(failing(2))
    with pytest.raises(RewardsMissing, match=r"21 of the last 1000 completions .* more than 2\.0% .* too_long 21"):
        failures.saw(failing(3))


def test_does_not_wait_for_the_window_where_it_is_lost_already() -> None:
    """All 100 of the first step are 10 % of the window, even if no other fails."""
    with pytest.raises(RewardsMissing, match=r"100 of the last 100 completions"):
        Failures(0.02, window=10).saw(failing(100))


def test_a_bad_step_is_forgotten_after_the_window() -> None:
    failures = Failures(0.02, window=2)
    failures.saw(failing(4))  # of 200
    with pytest.raises(RewardsMissing):
        failures.saw(failing(1))
    failures = Failures(0.02, window=2)
    for missing in (4, 0, 4, 0):
        failures.saw(failing(missing))


def test_names_the_commonest_causes() -> None:
    listed: list[str | None] = [*["kl_unavailable"] * 7, *["too_long"] * 3, *STEP]
    with pytest.raises(RewardsMissing, match="kl_unavailable 7, too_long 3"):
        Failures(0.02, window=1).saw(listed)


def test_none_may_fail_where_the_share_is_nought() -> None:
    failures = Failures(0.0, window=10)
    failures.saw(STEP)
    with pytest.raises(RewardsMissing):
        failures.saw(failing(1))


def test_a_run_that_goes_on_remembers_the_steps_before() -> None:
    failures = Failures(0.02, window=2)
    failures.saw(failing(3, "too_long"))
    before = json.loads(json.dumps(failures.steps))  # as a checkpoint keeps them
    with pytest.raises(RewardsMissing, match="kl_unavailable 2"):
        Failures(0.02, window=2, before=before).saw(failing(2, "kl_unavailable"))
    assert Failures(0.02, window=2).saw(failing(2)) == 2
