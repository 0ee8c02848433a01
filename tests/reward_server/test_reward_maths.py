"""The rewards, each with its arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_client.schemas.reward import KLEstimator, Preset, SpecRequest
from rlt_reward_server.reward import PRESETS, Evidence, Parts, divergence

SS = [-1.0, -2.0, -6.0]
# mean −9/3 = −3, min −6, sum −9: r_ss = −3 + 0.01 · −6 = −3.06
KL = [0.5, -0.25, 0.75]
# mean 1/3, max 0.75: r_kl = 0.33333 + 0.0075 = 0.34083

logprobs = st.floats(-50, 0)


def compute(preset: Preset, evidence: Evidence, **coefficients: object) -> Parts:
    reward = PRESETS[preset]
    return reward.compute(evidence, reward.resolve(SpecRequest.model_validate({"preset": preset, **coefficients})))


def test_rlt() -> None:
    parts = compute(Preset.rlt, Evidence(SS, KL, closed=True))
    # −3.06 − 3 · 0.340833 = −4.0825
    assert parts.reward == pytest.approx(-4.0825)
    assert parts.ss
    assert parts.kl
    assert (parts.ss.ss_mean, parts.ss.ss_min, parts.ss.ss_sum, parts.ss.r_ss) == pytest.approx((-3, -6, -9, -3.06))
    assert (parts.kl.kl_mean, parts.kl.kl_max, parts.kl.r_kl) == pytest.approx((1 / 3, 0.75, 0.3408333))
    assert parts.format == 0


def test_a_missing_closing_tag_costs_one() -> None:
    # −4.0825 − 1
    assert compute(Preset.rlt, Evidence(SS, KL, closed=False)).reward == pytest.approx(-5.0825)


def test_no_think_token_counts_plus_one_in_each_reduction() -> None:
    parts = compute(Preset.rlt, Evidence(SS, [], closed=True))
    # r_kl = 1 + 0.01 · 1 = 1.01; −3.06 − 3 · 1.01 = −6.09
    assert parts.kl
    assert (parts.kl.kl_mean, parts.kl.kl_max, parts.kl.r_kl) == pytest.approx((1, 1, 1.01))
    assert parts.reward == pytest.approx(-6.09)


def test_ss_only_needs_no_kl() -> None:
    parts = compute(Preset.ss_only, Evidence(SS, [], closed=False))
    # −3.06 − 1
    assert parts.reward == pytest.approx(-4.06)
    assert parts.kl is None


def test_kl_only_needs_no_answer() -> None:
    parts = compute(Preset.kl_only, Evidence([], KL, closed=True))
    # −3 · 0.340833
    assert parts.reward == pytest.approx(-1.0225)
    assert parts.ss is None
    # −3 · 1.01
    assert compute(Preset.kl_only, Evidence([], [], closed=True)).reward == pytest.approx(-3.03)


def test_every_coefficient_is_read() -> None:
    chosen = {"lambda": 8, "ss_min_coef": 0.5, "kl_max_coef": 0.25, "format_penalty": -2}
    # (−3 + 0.5 · −6) − 8 · (1/3 + 0.25 · 0.75) − 2 = −6 − 4.16667 − 2
    assert compute(Preset.rlt, Evidence(SS, KL, closed=False), **chosen).reward == pytest.approx(-12.1666667)


def test_the_authors_coefficients_are_the_defaults() -> None:
    spec = PRESETS[Preset.rlt].resolve(SpecRequest())
    assert spec.model_dump() == {
        "preset": "rlt",
        "kl": "k1",
        "lambda": 3.0,
        "ss_min_coef": 0.01,
        "kl_max_coef": 0.01,
        "format_penalty": -1.0,
        "student_temperature": 0.7,
        "teacher_temperature": 0.7,
    }


@pytest.mark.parametrize(
    ("preset", "unused"),
    [
        (Preset.ss_only, {"kl", "lambda", "kl_max_coef", "teacher_temperature"}),
        (Preset.kl_only, {"ss_min_coef"}),
        (Preset.rlt, set()),
    ],
)
def test_a_spec_names_no_coefficient_that_its_reward_does_not_read(preset: Preset, unused: set[str]) -> None:
    spec = PRESETS[preset].resolve(SpecRequest(preset=preset, lambda_=5)).model_dump()
    assert {name for name, value in spec.items() if value is None} == unused


def test_every_preset_of_the_wire_is_here() -> None:
    assert set(PRESETS) == set(Preset)


def test_k1_is_the_difference_and_k3_its_convex_twin() -> None:
    teacher, student = [-1.0, -2.0], [-1.5, -1.0]
    assert divergence(KLEstimator.k1, teacher, student) == [0.5, -1.0]
    # 0.5 − 1 + e^−0.5 = 0.106531;  −1 − 1 + e^1 = 0.718282
    assert divergence(KLEstimator.k3, teacher, student) == pytest.approx([0.1065307, 0.7182818])


def test_k3_of_absurd_values_is_infinite_rather_than_an_error() -> None:
    assert divergence(KLEstimator.k3, [-5000.0], [0.0]) == [math.inf]


def test_columns_of_unequal_length_are_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="zip"):
        divergence(KLEstimator.k1, [0.0], [])


@given(st.lists(st.tuples(logprobs, logprobs), max_size=20))
def test_k3_is_never_negative(pairs: list[tuple[float, float]]) -> None:
    teacher, student = [t for t, _ in pairs], [s for _, s in pairs]
    assert all(value >= 0 for value in divergence(KLEstimator.k3, teacher, student))


@given(st.lists(logprobs, min_size=1), st.lists(st.floats(-50, 50)), st.booleans())
def test_the_parts_add_up(ss: list[float], kl: list[float], closed: bool) -> None:
    parts = compute(Preset.rlt, Evidence(ss, kl, closed))
    assert parts.ss
    assert parts.kl
    assert parts.reward == pytest.approx(parts.ss.r_ss - 3 * parts.kl.r_kl + parts.format, abs=1e-9)
    assert parts.ss.ss_min <= parts.ss.ss_mean + 1e-9
    assert parts.kl.kl_max >= parts.kl.kl_mean - 1e-9
