"""The committed base of the parts task, and making one: gate, record, refusals."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlt_trainer.__main__ import main
from rlt_trainer.tiny import Fitting, GateFailed
from rlt_trainer.tiny.model import load_model, new_model
from rlt_trainer.tiny.parts import PartsBaseRecipe, parts_base
from rlt_trainer.tiny.parts.gate import parts_gate
from rlt_trainer.tiny.parts.make import make_parts_base

SHORT = PartsBaseRecipe(fitting=Fitting(steps=3, learning_rate=1e-3, batch_size=4), attempts=2)
DOCUMENTS = {"single_op", "fact", "lookup", "recall", "copy"}


def ignore(line: str) -> None:
    """Progress that nobody reads."""


def test_the_committed_base_passes_the_gate_of_each_document_type() -> None:
    measured = parts_gate(load_model(parts_base()), PartsBaseRecipe())
    assert set(measured) == DOCUMENTS
    assert min(measured.values()) > 0.99, measured


def test_an_untrained_model_does_not() -> None:
    recipe = PartsBaseRecipe()
    assert max(parts_gate(new_model(recipe.shape, 0), recipe).values()) < 0.2


def test_the_committed_base_was_made_by_the_recipe_of_today() -> None:
    record = json.loads((parts_base() / "recipe.json").read_text())
    assert record["recipe"] == asdict(PartsBaseRecipe())
    assert set(record["gate"]) == DOCUMENTS
    assert min(record["gate"].values()) > 0.99


def test_the_committed_base_is_small_and_every_engine_takes_it() -> None:
    config = json.loads((parts_base() / "config.json").read_text())
    assert config["hidden_size"] // config["num_attention_heads"] == 32
    weights = load_file(parts_base() / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert sum(file.stat().st_size for file in parts_base().iterdir()) < 1_000_000


def test_seeds_that_fail_the_gate_are_named_and_leave_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(GateFailed, match="seeds 7 to 8 all failed"):
        make_parts_base(tmp_path / "base", seed=7, recipe=SHORT, progress=lines.append)
    assert [line for line in lines if "next seed" in line] == [
        "seed 7 fails the gate of 0.99: next seed",
        "seed 8 fails the gate of 0.99: next seed",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_passes_is_replaced_only_when_asked(tmp_path: Path) -> None:
    passing = replace(SHORT, gate=-1.0)
    made = make_parts_base(tmp_path / "base", seed=3, recipe=passing, progress=ignore)
    assert json.loads((made / "recipe.json").read_text())["seed"] == 3
    with pytest.raises(FileExistsError):
        make_parts_base(tmp_path / "base", seed=4, recipe=passing, progress=ignore)
    make_parts_base(tmp_path / "base", seed=4, recipe=passing, replace=True, progress=ignore)
    assert json.loads((made / "recipe.json").read_text())["seed"] == 4


def test_the_command_refuses_a_folder_with_something_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "something").touch()
    assert main(["tiny", "parts-base", "--out", str(tmp_path)]) == 1
    assert "not an empty folder" in capsys.readouterr().err
