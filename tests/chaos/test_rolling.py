"""Every process is replaced under load, and neither a build nor a user notices; see docs/upgrades.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos.rolling import ORDER, rolling

ROUNDS, PROBLEMS = 1, 600  # `make chaos ROLLING=2` makes more


@pytest.mark.slow
@pytest.mark.timeout(1800)  # twenty minutes on a machine that does other things
def test_a_rolling_restart_of_everything_loses_nothing_and_fails_nobody(tmp_path: Path) -> None:
    rolled = rolling(tmp_path / "world", problems=PROBLEMS, rounds=ROUNDS)
    story = "\n".join([*rolled.wrong, *rolled.lines()])
    assert not rolled.wrong, story
    assert rolled.restarts == ROUNDS * len(ORDER), story
    for name, seen in rolled.seen.items():
        assert seen.calls > 0, f"{name} saw nothing: {story}"
