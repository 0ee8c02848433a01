"""How a build is cut, however large it is."""

from __future__ import annotations

import pytest

from rlt_jobs.builds.repository import MOST_SHARDS, problems_of_shard


@pytest.mark.parametrize(
    ("problems", "n", "expected"),
    [
        (1, 8, 32),  # 256 // 8
        (10, 1_024, 1),  # problems are never divided
        (320_000, 8, 32),  # 10,000 shards
        (1_000_000, 8, 100),  # 31,250 of the usual ones are too many to sum
    ],
)
def test_shards_are_as_large_as_asked_for_until_they_would_be_too_many(problems: int, n: int, expected: int) -> None:
    found = problems_of_shard(problems, n, 256)
    assert found == expected
    assert -(-problems // found) <= MOST_SHARDS
