"""Which explanations come back, in which order, which is the best, and why the others do not."""

from __future__ import annotations

import pytest

from rlt_client.schemas.common import GenStatus, ModelRef
from rlt_client.schemas.explain import Dropped, ExplainOptions, Explanation, ExplanationFlag, ExplanationUsage
from rlt_client.testing import make_score
from rlt_teacher_server.explain.comparison import compare
from rlt_teacher_server.explain.ranking import is_doomed, rank, select

UNSCORED = object()


def explanation(index, reward=None, status="complete", leaks=False):
    scored = reward is not UNSCORED
    return Explanation(
        index=index,
        text="t",
        completion="t",
        gen_status=GenStatus(status),
        finish_reason="stop",
        usage=ExplanationUsage(prompt_tokens=1, completion_tokens=1),
        flags=[ExplanationFlag.refers_to_given_solution] if leaks else [],
        score=(make_score(error="kl_unavailable") if reward is None else make_score(reward)) if scored else None,
    )


def chosen(explanations, **options):
    selection = select(explanations, ExplainOptions(score=True, **options))
    return [each.index for each in selection.explanations], selection.best, selection.dropped


def test_highest_reward_first_then_what_has_none_equals_by_index():
    rewards = [None, -2.0, -1.0, -2.0, UNSCORED]
    ranked = rank(explanation(index, reward) for index, reward in enumerate(rewards))
    assert [each.index for each in ranked] == [2, 1, 3, 0, 4]


def test_what_is_not_complete_is_never_the_best():
    given = [explanation(0, -3.0), explanation(1, -1.0, "truncated"), explanation(2, -2.0)]
    assert chosen(given) == ([1, 2, 0], 2, Dropped())


def test_keep_best():
    given = [explanation(0, -3.0), explanation(1, -1.0, "malformed"), explanation(2, -2.0)]
    assert chosen(given, keep="best") == ([2], 2, Dropped(not_best=2))


@pytest.mark.parametrize("status", ["truncated", "malformed", "context_overflow", "engine_error"])
def test_keep_best_with_nothing_complete_keeps_nothing(status):
    given = [explanation(index, -1.0, status) for index in range(3)]
    assert chosen(given, keep="best") == ([], None, Dropped(not_best=3))


def test_keep_best_without_a_single_reward_keeps_nothing():
    assert chosen([explanation(0), explanation(1)], keep="best") == ([], None, Dropped(unscored=2))


def test_min_reward_includes_its_own_value_and_drops_what_has_no_reward():
    given = [explanation(0, -2.0), explanation(1, -2.5), explanation(2), explanation(3, UNSCORED)]
    assert chosen(given, min_reward=-2.0) == ([0], 0, Dropped(min_reward=1, unscored=2))


def test_the_best_can_be_dropped_by_min_reward_like_any_other():
    assert chosen([explanation(0, -1.0)], min_reward=-0.5) == ([], None, Dropped(min_reward=1))
    assert chosen([explanation(0, -1.0)], min_reward=-0.5, keep="best") == ([], None, Dropped(min_reward=1))


def test_where_the_best_leaks_the_next_one_is_the_best():
    given = [explanation(0, -1.0, leaks=True), explanation(1, -2.0), explanation(2, -3.0)]
    assert chosen(given)[:2] == ([0, 1, 2], 0)
    assert chosen(given, drop_leaks=True) == ([1, 2], 1, Dropped(leaks=1))
    assert chosen(given, drop_leaks=True, keep="best") == ([1], 1, Dropped(leaks=1, not_best=1))


def test_only_the_first_reason_counts():
    """Incomplete before leaks before min_reward before not_best."""
    given = [
        explanation(0, -9.0, "truncated", leaks=True),
        explanation(1, -9.0, leaks=True),
        explanation(2, -9.0),
        explanation(3, -2.0),
        explanation(4, -1.0),
    ]
    options = {"incomplete": "drop", "drop_leaks": True, "min_reward": -5.0, "keep": "best"}
    assert chosen(given, **options) == ([4], 4, Dropped(incomplete=1, leaks=1, min_reward=1, not_best=1))


def test_an_incomplete_one_that_leaks_is_dropped_for_the_leak_where_incomplete_ones_are_kept():
    given = [explanation(0, -1.0, "truncated", leaks=True)]
    assert chosen(given, drop_leaks=True) == ([], None, Dropped(leaks=1))


@pytest.mark.parametrize("incomplete", ["keep", "retry"])
def test_incomplete_ones_are_dropped_only_where_that_is_asked_for(incomplete):
    given = [explanation(0, -1.0, "truncated"), explanation(1, UNSCORED, "engine_error")]
    assert chosen(given, incomplete=incomplete)[0] == [0, 1]
    assert chosen(given, incomplete="drop") == ([], None, Dropped(incomplete=2))


def test_everything_dropped_is_an_empty_list():
    given = [explanation(0, -1.0, "truncated"), explanation(1, -1.0, leaks=True), explanation(2)]
    options = {"incomplete": "drop", "drop_leaks": True, "min_reward": -5.0}
    assert chosen(given, **options) == ([], None, Dropped(incomplete=1, leaks=1, unscored=1))


def test_what_is_doomed_before_it_has_a_reward():
    leaking, cut = explanation(0, leaks=True), explanation(1, status="truncated")
    assert is_doomed(leaking, ExplainOptions(drop_leaks=True))
    assert is_doomed(cut, ExplainOptions(incomplete="drop"))
    assert not is_doomed(leaking, ExplainOptions(incomplete="drop"))
    assert not is_doomed(cut, ExplainOptions(drop_leaks=True, score=True, min_reward=100.0))


# Several policies

POLICIES = [ModelRef(name=name, revision=name) for name in ("a", "b")]


def test_each_policy_is_summed_up():
    """Means: (−1 − 2) / 2 = −1.5 of a, whose third has no reward; (−4 − 3 − 5) / 3 = −4 of b."""
    own = [explanation(0, -1.0, "truncated"), explanation(1, -2.0), explanation(2, None, "malformed")]
    other = [explanation(3, -4.0), explanation(4, -3.0, leaks=True), explanation(5, -5.0)]
    a, b = compare(POLICIES, [*own, *other])
    assert (a.policy.name, a.samples, a.complete, a.scored, a.leaking, a.mean_reward) == ("a", 3, 1, 2, 0, -1.5)
    assert (a.best, a.best_reward) == (1, -1.0), "the best is complete; the highest reward need not be"
    assert (b.policy.name, b.samples, b.complete, b.scored, b.leaking, b.mean_reward) == ("b", 3, 3, 3, 1, -4.0)
    assert (b.best, b.best_reward) == (4, -3.0)


def test_wins_are_counted_where_all_have_a_reward_and_one_is_the_highest():
    """Seeds: a wins, b wins, a tie, b has none, b wins."""
    rewards = [[-1.0, -5.0, -2.0, -1.0, -9.0], [-2.0, -4.0, -2.0, None, -8.0]]
    given = [explanation(5 * turn + i, reward) for turn, row in enumerate(rewards) for i, reward in enumerate(row)]
    assert [summary.wins for summary in compare(POLICIES, given)] == [1, 2]


def test_a_comparison_without_scores():
    a, b = compare(POLICIES, [explanation(0, UNSCORED), explanation(1, UNSCORED)])
    assert (a.mean_reward, a.best_reward, a.best, a.wins, a.complete) == (None, None, None, 0, 1)
    assert b.policy.name == "b"
