"""Policies for the tiny model: adapters, another full model, and folders that no engine may take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeAdapter = Callable[..., Path]
MakeBroken = Callable[[str], Path]
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def policies_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where these policies lie: for `allowed_roots`."""
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model: Path, policies_dir: Path) -> MakeAdapter:
    """A LoRA adapter of the tiny model as PEFT saves it; each seed writes otherwise.

    At scale 1 nearly every greedy explanation changes, and nearly all still close their tags; at 0.5 half of them
    change. Asked for the same again, it gives the same folder.
    """

    def make(seed: int, rank: int = 4, scale: float = 1.0) -> Path:
        folder = policies_dir / f"adapter-{seed}-rank{rank}-scale{scale:g}"
        if not folder.exists():
            _adapted(tiny_model, seed, rank, scale).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def merged_model(tiny_model: Path, policies_dir: Path) -> MakeAdapter:
    """The full model that an adapter of `tiny_adapter` and the tiny model make, merged by PEFT."""

    def make(seed: int, rank: int = 4, scale: float = 1.0) -> Path:
        folder = policies_dir / f"merged-{seed}-rank{rank}-scale{scale:g}"
        if not folder.exists():
            shutil.copytree(tiny_model, folder)
            _adapted(tiny_model, seed, rank, scale).merge_and_unload().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def other_model(merged_model: MakeAdapter, policies_dir: Path) -> Path:
    """A full model of the tiny one's architecture and tokenizer that writes other explanations, tags closed.

    Its embeddings, which are its output layer too, are others as well.
    """
    folder = policies_dir / "other"
    if not folder.exists():
        shutil.copytree(merged_model(77), folder)
        _edit_weights(MODEL_WEIGHTS, _other_embeddings)(folder)
    return folder


@pytest.fixture(scope="session")
def broken_policy(tiny_model: Path, tiny_adapter: MakeAdapter, policies_dir: Path) -> MakeBroken:
    """A folder with one fault, by the fault's name: a key of `BROKEN_ADAPTERS` or `BROKEN_MODELS`."""

    def make(fault: str) -> Path:
        folder = policies_dir / f"broken-{fault}"
        if not folder.exists():
            shutil.copytree(tiny_adapter(1) if fault in BROKEN_ADAPTERS else tiny_model, folder)
            (BROKEN_ADAPTERS | BROKEN_MODELS)[fault](folder)
        return folder

    return make


def _adapted(base: Path, seed: int, rank: int, scale: float) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,  # random, not zeros: it changes the model
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)


def _edit_config(file: str, **fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def _edit_weights(file: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(folder / file)), folder / file, {"format": "pt"})

    return edit


def _without_last(tensors: dict[str, Any]) -> dict[str, Any]:
    return {key: tensors[key] for key in sorted(tensors)[:-1]}


def _other_embeddings(tensors: dict[str, Any]) -> dict[str, Any]:
    import torch

    name = "model.embed_tokens.weight"
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(77))
    return tensors | {name: tensors[name] + 0.1 * tensors[name].std() * noise}


def _wider(tensors: dict[str, Any]) -> dict[str, Any]:
    """As if from a model of twice the width."""
    return {key: value.repeat(*(2 if size != 4 else 1 for size in value.shape)) for key, value in tensors.items()}


def _cut_off(file: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / file
        path.write_bytes(path.read_bytes()[:2000])

    return edit


def _pickled(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / MODEL_WEIGHTS), folder / "pytorch_model.bin")
    (folder / MODEL_WEIGHTS).unlink()


def _other_tokenizer(folder: Path) -> None:
    """Two words of the vocabulary have changed places."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))


def _other_shape(folder: Path) -> None:
    """A good model with one layer less."""
    _edit_config("config.json", num_hidden_layers=2)(folder)
    _edit_weights(MODEL_WEIGHTS, lambda tensors: {k: v for k, v in tensors.items() if "layers.2." not in k})(folder)


BROKEN_ADAPTERS: dict[str, Callable[[Path], None]] = {
    "rank-is-not-the-weights": _edit_config("adapter_config.json", r=8),
    "shapes-of-another-model": _edit_weights(ADAPTER_WEIGHTS, _wider),
    "weights-missing": _edit_weights(ADAPTER_WEIGHTS, _without_last),
    "modules-the-model-lacks": _edit_config("adapter_config.json", target_modules=["c_attn"]),
    "not-lora": _edit_config("adapter_config.json", peft_type="IA3"),
    "no-adapter-config": lambda folder: (folder / "adapter_config.json").unlink(),
    "adapter-cut-off": _cut_off(ADAPTER_WEIGHTS),
}

BROKEN_MODELS: dict[str, Callable[[Path], None]] = {
    "architecture": _other_shape,
    "tokenizer": _other_tokenizer,
    "tensor-missing": _edit_weights(MODEL_WEIGHTS, _without_last),
    "pickles": _pickled,
    "model-cut-off": _cut_off(MODEL_WEIGHTS),
}
