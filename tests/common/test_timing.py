from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_service.timing import split

moments = st.tuples(st.floats(1, 50), st.floats(0, 20), st.floats(0, 20)).map(lambda m: (m[0], m[0] + m[1], sum(m)))


def test_one_pass() -> None:
    # began 0, queued 1, ran from 3 to 7, replied at 8
    spent = split(0, 8, [(1, 3, 7)])
    assert (spent.queue_ms, spent.engine_ms, spent.overhead_ms) == pytest.approx((2000, 4000, 2000))


def test_passes_that_share_a_batch_are_counted_once() -> None:
    # both ran from 2 to 5; a third from 6 to 7; in between the engine ran others' work
    spent = split(0, 7, [(0, 2, 5), (0, 2, 5), (0, 6, 7)])
    assert (spent.queue_ms, spent.engine_ms, spent.overhead_ms) == pytest.approx((3000, 4000, 0))


def test_without_passes_all_is_overhead() -> None:
    assert split(1, 3, []).overhead_ms == pytest.approx(2000)


@given(st.lists(moments, min_size=1))
def test_the_phases_add_up(passes: list[tuple[float, float, float]]) -> None:
    spent = split(0, 100, passes)
    assert spent.queue_ms + spent.engine_ms + spent.overhead_ms == pytest.approx(100_000)
