"""Two data-parallel processes with one teacher train as one process does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from plugins.training import Training
from safetensors.torch import load_file

from rlt_local.ports import free

pytestmark = pytest.mark.slow  # four processes, each of which imports torch

STEPS = 3


def model(run: Training) -> dict[str, torch.Tensor]:
    return load_file(run.output / "model" / "model.safetensors")


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Root of the mean square difference."""
    squares = torch.cat([(left[name] - right[name]).flatten() ** 2 for name in left])
    return squares.mean().sqrt().item()


def test_two_processes_train_as_one_does(
    training: Callable[..., Training], launch: Callable[..., Any], tiny_warmup: Path
) -> None:
    given: dict[str, Any] = {"training": {"steps": STEPS, "max_grad_norm": 1e9}, "checkpoints": {"every": STEPS}}
    alone, both = training("alone", **given), training("both", **given)
    alone.run()
    by = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free()[0]}", "-m", "rlt_trainer"]
    done = launch("rl", json.loads(json.dumps(both.config, default=str)), by=by)
    assert done.returncode == 0, done.stderr[-4000:]

    for mine, theirs in zip(*(_steps(run) for run in (alone, both)), strict=True):
        same = ["question", "completion", "finish_reason", "reward"]
        pd.testing.assert_frame_equal(mine[same], theirs[same], rtol=1e-4)  # same seed at the same place in the batch
        assert theirs["revision"].nunique() == 1  # one process publishes, both sample with it
    first = load_file(tiny_warmup / "model.safetensors")
    moved = distance(model(alone), first)
    assert moved > 1e-4
    assert distance(model(alone), model(both)) < 0.01 * moved


def _steps(run: Training) -> list[pd.DataFrame]:
    files = sorted(run.output.glob("completions/step-*.parquet"))
    assert len(files) == STEPS
    return [pd.read_parquet(file) for file in files]
