"""The committed base, and making models: gate, records, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rlt_trainer.tiny import (
    BaseRecipe,
    Fitting,
    GateFailed,
    WarmupRecipe,
    ensure_warmup,
    make_base,
    make_warmup,
    single_op_accuracy,
)
from rlt_trainer.tiny.documents import Document
from rlt_trainer.tiny.fit import collate, fit, loss_of, rate_at
from rlt_trainer.tiny.gate import gate
from rlt_trainer.tiny.make import as_json
from rlt_trainer.tiny.model import load_model, new_model, save_model
from rlt_trainer.tiny.recipe import ModelShape

SHORT = Fitting(steps=4, learning_rate=1e-3, batch_size=4)
SHORT_BASE = BaseRecipe(fitting=SHORT, attempts=2)
SHORT_WARMUP = WarmupRecipe(fitting=SHORT, corpus=20)


def ignore(line: str) -> None:
    """Progress that nobody reads."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_committed_base_passes_the_gate(base_model: LlamaForCausalLM) -> None:
    measured = gate(base_model)
    assert measured.single_op > 0.99
    assert measured.passed(BaseRecipe().gate)


def test_an_untrained_model_does_not() -> None:
    model = new_model(ModelShape(), seed=0)
    assert single_op_accuracy(model) < 0.1
    assert not gate(model).passed(0.99)


def test_the_committed_base_was_made_by_the_recipe_of_today(tiny_base: Path) -> None:
    record = json.loads((tiny_base / "recipe.json").read_text())
    assert record["recipe"] == as_json(BaseRecipe())
    assert record["gate"]["single_op"] > 0.99


def test_the_committed_base_is_small_and_every_engine_takes_it(tiny_base: Path) -> None:
    config = json.loads((tiny_base / "config.json").read_text())
    assert config["hidden_size"] // config["num_attention_heads"] == 32
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_key_value_heads"] == 2
    assert sum(file.stat().st_size for file in tiny_base.iterdir()) < 1_000_000
    assert {tensor.dtype for tensor in weights(tiny_base).values()} == {torch.float32}
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert sum(parameter.numel() for parameter in model.parameters()) == 147_328
    assert model.generation_config.eos_token_id == config["eos_token_id"] == 81
    assert model.generation_config.temperature is None


def test_what_is_saved_is_what_is_loaded(base_model: LlamaForCausalLM, tmp_path: Path) -> None:
    save_model(base_model, tmp_path)
    again = load_model(tmp_path)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(base_model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_the_seed_decides_the_weights_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (new_model(ModelShape(), seed).lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_only_learned_words_count() -> None:
    model = new_model(ModelShape(), seed=0)
    words = ("1", "A", "+1", "2", ";")
    documents = [Document(words, (False, False, False, True, False)), Document(words[:2], (False, False))]
    ids, targets = collate(documents)
    assert ids.shape == targets.shape == (2, 5)
    with torch.inference_mode():
        expected = -torch.log_softmax(model(input_ids=ids[:1]).logits[0, 2], -1)[2]
        assert loss_of(model, ids, targets).item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    fitting = Fitting(steps=150, learning_rate=1.0, warmup_steps=50)
    rates = [rate_at(step, fitting) for step in range(150)]
    assert rates[0] == pytest.approx(0.02)  # 1/50
    assert max(rates) == 1.0
    assert rates[100] == pytest.approx(0.5)  # half of the cosine
    assert rates[-1] < 0.001


def test_fitting_lowers_the_loss() -> None:
    model = new_model(ModelShape(), seed=0)
    fact = Document(("1", "A", "+1", "2", ";"), (False, False, False, True, False))
    lines: list[str] = []
    loss = fit(model, iter([fact] * 80), Fitting(steps=20, learning_rate=1e-2, batch_size=4), lines.append)
    assert loss < 1.0  # from 4.5, the logarithm of 87
    assert len(lines) == 10
    assert not model.training


def test_seeds_that_fail_the_gate_are_named_and_leave_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(GateFailed, match="seeds 7 to 8 all failed"):
        make_base(tmp_path / "base", seed=7, recipe=SHORT_BASE, progress=lines.append)
    assert [line for line in lines if "next seed" in line] == [
        "seed 7 fails the gate of 0.99: next seed",
        "seed 8 fails the gate of 0.99: next seed",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_passes_is_whole_and_readable_by_others(tmp_path: Path) -> None:
    made = make_base(tmp_path / "base", seed=3, recipe=replace(SHORT_BASE, gate=-1.0), progress=ignore)
    assert (made.seed, made.steps, made.folder) == (3, 4, tmp_path / "base")
    assert {file.name for file in made.folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in made.folder.iterdir())


def test_an_earlier_base_is_replaced_only_when_asked(tmp_path: Path) -> None:
    passing = replace(SHORT_BASE, gate=-1.0)
    make_base(tmp_path / "base", seed=1, recipe=passing, progress=ignore)
    first = weights(tmp_path / "base")["model.norm.weight"].clone()
    with pytest.raises(FileExistsError):
        make_base(tmp_path / "base", seed=2, recipe=passing, progress=ignore)
    with pytest.raises(GateFailed):
        make_base(tmp_path / "base", seed=2, recipe=SHORT_BASE, replace=True, progress=ignore)
    assert torch.equal(weights(tmp_path / "base")["model.norm.weight"], first)
    make_base(tmp_path / "base", seed=2, recipe=passing, replace=True, progress=ignore)
    assert not torch.equal(weights(tmp_path / "base")["model.norm.weight"], first)
    assert [entry.name for entry in tmp_path.iterdir()] == ["base"]


def test_a_warmup_is_the_same_for_one_seed(tiny_base: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_warmup(tiny_base, tmp_path / name, seed, recipe=SHORT_WARMUP, progress=ignore)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_warmup_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model in"):
        make_warmup(tmp_path / "absent", tmp_path / "out", progress=ignore)
    assert list(tmp_path.iterdir()) == []


def test_training_leaves_the_number_of_threads_alone(tiny_base: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        make_warmup(tiny_base, tmp_path / "out", recipe=SHORT_WARMUP, progress=ignore)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_warmup_is_made_once_and_then_found(tmp_path: Path) -> None:
    lines: list[str] = []
    first = ensure_warmup(tmp_path, recipe=SHORT_WARMUP, progress=lines.append)
    assert first.parent == tmp_path / "models"
    assert any("warm-up done" in line for line in lines)
    lines.clear()
    assert ensure_warmup(tmp_path, recipe=SHORT_WARMUP, progress=lines.append) == first
    assert lines == []


def test_another_seed_or_recipe_is_another_warmup(tmp_path: Path) -> None:
    recipes = [(0, SHORT_WARMUP), (1, SHORT_WARMUP), (0, replace(SHORT_WARMUP, corpus=21))]
    folders = {ensure_warmup(tmp_path, seed=seed, recipe=recipe, progress=ignore) for seed, recipe in recipes}
    assert len(folders) == 3


def test_the_cache_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("RLT_CACHE", str(tmp_path / "own"))
    assert ensure_warmup(recipe=SHORT_WARMUP, progress=ignore).parent == tmp_path / "own" / "models"
    monkeypatch.delenv("RLT_CACHE")
    assert ensure_warmup(recipe=SHORT_WARMUP, progress=ignore).parent == tmp_path / "xdg" / "rlt-platform" / "models"
