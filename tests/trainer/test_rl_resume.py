"""A run that was killed goes on as if nothing had been: same batches, same weights, same reference, same versions."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from plugins.training import Training
from safetensors.torch import load_file

from rlt_trainer import checkpoints

pytestmark = pytest.mark.slow  # each run is a process that trains, with servers beside it

STEPS = 6
KILLED = -signal.SIGKILL

TrainingOf = Callable[..., Training]


@pytest.fixture(scope="module")
def whole(training: TrainingOf) -> Training:
    """A run that nobody disturbed: two epochs of three steps, the reference synced after steps 2, 4 and 6."""
    run = training("whole")
    run.run()
    return run


@pytest.mark.parametrize(
    ("point", "step", "goes_on_from"),
    [
        ("publishing", 1, 1),
        ("published", 2, 2),
        ("roll-out", 0, None),
        ("roll-out", 4, 4),  # in the second epoch
        ("update", 3, 3),  # between two epochs
        ("writing", 2, 1),
        ("sealing", 5, 4),
    ],
)
def test_goes_on_as_if_nothing_had_been(
    whole: Training, training: TrainingOf, point: str, step: int, goes_on_from: int | None
) -> None:
    run = training(f"{point}-{step}")
    run.run((point, step), status=KILLED)
    found = checkpoints.newest(run.output)
    assert (int(found.name.rpartition("-")[2]) if found else None) == goes_on_from

    run.run()

    pd.testing.assert_frame_equal(samples(run), samples(whole))  # problems, seeds' texts, rewards, revisions
    assert_same(state(run), state(whole))
    assert_same(load_file(run.output / "model" / "model.safetensors"), finished(whole))


def test_each_step_has_its_own_version_and_problems(whole: Training) -> None:
    """What the comparisons above compare does change from step to step."""
    table = samples(whole)
    assert len(set(table.groupby("step")["revision"].first())) == STEPS
    assert (table.groupby("step")["revision"].nunique() == 1).all()
    epochs = [
        table[table["step"].isin(steps)].groupby("step")["question"].unique().tolist()
        for steps in ((0, 1, 2), (3, 4, 5))
    ]
    assert {question for step in epochs[0] for question in step} == {
        question for step in epochs[1] for question in step
    }
    assert [list(step) for step in epochs[0]] != [list(step) for step in epochs[1]]


def test_several_kills_and_checkpoints_further_apart(whole: Training, training: TrainingOf) -> None:
    run = training("several", checkpoints={"every": 2})
    run.run(("roll-out", 1), status=KILLED)  # no checkpoint yet
    run.run(("update", 3), status=KILLED)
    run.run(("sealing", 4), status=KILLED)
    run.run(("published", 5), status=KILLED)
    run.run()
    pd.testing.assert_frame_equal(samples(run), samples(whole))
    assert_same(finished(run), finished(whole))


def test_a_damaged_checkpoint_is_passed_over(whole: Training, training: TrainingOf) -> None:
    run = training("damaged")
    run.run(("roll-out", 5), status=KILLED)
    weights = run.output / "checkpoint-5" / "optimizer.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    run.run()
    assert_same(finished(run), finished(whole))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_its_step(
    whole: Training, training: TrainingOf, number: signal.Signals, status: int
) -> None:
    run = training(f"signal-{number}", checkpoints={"every": 100})
    told = run.run(("roll-out", 2), by=number, status=status)
    assert f"ended by {number.name}; the same command goes on from here" in told
    found = checkpoints.newest(run.output)
    assert found is not None
    assert found.name == "checkpoint-3"

    run.run()
    pd.testing.assert_frame_equal(samples(run), samples(whole))
    assert_same(finished(run), finished(whole))


def samples(run: Training) -> pd.DataFrame:
    return run.completions().reset_index(drop=True)


def finished(run: Training) -> dict[str, torch.Tensor]:
    return load_file(run.output / "model" / "model.safetensors")


def state(run: Training) -> dict[str, Any]:
    """What the last checkpoint keeps."""
    folder = run.output / f"checkpoint-{STEPS}"
    return {
        "weights": load_file(folder / "model.safetensors"),
        "reference": load_file(folder / "reference" / "model.safetensors"),
        "optimizer": torch.load(folder / "optimizer.pt", weights_only=True),
        "scheduler": torch.load(folder / "scheduler.pt", weights_only=True),
    }


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Equal to the last bit."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for name in left:
            assert_same(left[name], right[name], f"{where}/{name}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for place, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}/{place}")
    else:
        assert left == right, where
