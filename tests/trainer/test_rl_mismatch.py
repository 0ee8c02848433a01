"""How far the trainer's log-probs may be from the engine's."""

from __future__ import annotations

import pytest
import torch

from rlt_trainer.config.rl import Mismatch
from rlt_trainer.errors import Diverged
from rlt_trainer.rl.mismatch import Watch

LEAST = 2000


def deltas(*runs: tuple[int, float]) -> torch.Tensor:
    """So many tokens of such a difference, shape [T]."""
    return torch.cat([torch.full((count,), value) for count, value in runs])


def test_looks_at_enough_tokens_together() -> None:
    watch = Watch(Mismatch(), "float32")
    assert watch.saw(deltas((1999, 1e-6))) is None
    seen = watch.saw(deltas((3, 5e-4)))
    assert seen is not None
    difference, warnings = seen
    assert (difference.tokens, difference.max) == (2002, pytest.approx(5e-4))
    assert difference.mean == pytest.approx((1999e-6 + 3 * 5e-4) / 2002)
    assert not warnings
    assert watch.saw(deltas((1, 1e-6))) is None  # from the beginning again


def test_float32_stops_at_one_token() -> None:
    with pytest.raises(Diverged, match=r"0\.002 nats \(max of 2000 tokens; at most 0\.001\)"):
        Watch(Mismatch(), "float32").saw(deltas((LEAST - 1, 1e-6), (1, 2e-3)))


def test_bfloat16_bears_what_a_healthy_model_showed() -> None:
    """0.06 on average and 0.48 at most."""
    seen = Watch(Mismatch(), "bfloat16").saw(deltas((LEAST, 0.06), (1, 0.48)))
    assert seen is not None
    assert not seen[1]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (deltas((LEAST, 0.12)), ["mean 0.12 nats"]),
        (deltas((1900, 0.01), (100, 0.8)), ["99th percentile 0.8 nats"]),  # 5 % are beyond; mean .0495
    ],
    ids=["mean", "tail"],
)
def test_bfloat16_warns(found: torch.Tensor, told: list[str]) -> None:
    seen = Watch(Mismatch(), "bfloat16").saw(found)
    assert seen is not None
    assert list(seen[1]) == told


def test_bfloat16_stops_at_the_mean() -> None:
    with pytest.raises(Diverged, match=r"mean of 2000 tokens; at most 0\.3"):
        Watch(Mismatch(), "bfloat16").saw(deltas((LEAST, 0.31)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_a_number_stops(dtype: str) -> None:
    with pytest.raises(Diverged, match="nan nats"):
        Watch(Mismatch(), dtype).saw(deltas((LEAST, 0.0), (1, float("nan"))))


def test_limits_can_be_told() -> None:
    watch = Watch(Mismatch(stop_max=0.5, least_tokens=1), "float32")
    assert watch.saw(deltas((1, 0.4))) is not None
    with pytest.raises(Diverged):
        watch.saw(deltas((1, 0.6)))
