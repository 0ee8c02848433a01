"""A trained model as a folder that servers load: there whole or not at all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from rlt_trainer.config.sections import Model
from rlt_trainer.models import load_model
from rlt_trainer.tiny.folders import whole

__all__ = ["save_trained", "write_weights"]


def save_trained(trainer: Trainer, model: Model, output: Path) -> Path:
    """Write `<output>/model`, and with LoRA `<output>/adapter`, whose sum with its base the model then is.

    Called in every process: shards are gathered.

    Returns:
        The model's folder.
    """
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    folder = output / "model"
    if trainer.accelerator.is_main_process:
        trained, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
        if model.lora is None:
            _replace(folder, "config.json", trained, state, tokenizer, model.dtype)
        else:
            adapter = output / "adapter"
            _replace(adapter, "adapter_config.json", trained, state, tokenizer, model.dtype)
            with _whole_models(trainer.args):
                _replace(folder, "config.json", _merged(model, adapter), None, tokenizer, model.dtype)
    trainer.accelerator.wait_for_everyone()
    return folder


def write_weights(
    folder: Path, model: Any, state: dict[str, torch.Tensor] | None, tokenizer: PreTrainedTokenizerBase, dtype: str
) -> None:
    """Weights in `dtype`, with the tokenizer beside them.

    Args:
        state: the weights, where the model's own are shards.
    """
    kind: torch.dtype = getattr(torch, dtype)
    held = model.state_dict() if state is None else state
    twice = getattr(model, "all_tied_weights_keys", {})  # shards and casts of one tensor are tensors of their own
    cast = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in held.items()
        if name not in twice
    }
    model.save_pretrained(folder, state_dict=cast)
    if (folder / "config.json").is_file():  # none with an adapter
        told = copy.deepcopy(model.config)
        told.dtype = kind  # transformers writes that of the model in memory
        told.use_cache = True  # trainers turn it off
        told.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _replace(folder: Path, mark: str, *weights: Any) -> None:
    with whole(folder, replacing=mark) as fresh:
        write_weights(fresh, *weights)


@contextmanager
def _whole_models(args: TrainingArguments) -> Iterator[None]:
    """What is loaded meanwhile is not divided among processes, which ZeRO-3 does to every model, with all of them."""
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]  # of transformers, which types it not
    try:
        yield
    finally:
        if (held := getattr(args, "hf_deepspeed_config", None)) is not None:  # none without DeepSpeed
            set_hf_deepspeed_config(held)  # type: ignore[no-untyped-call]


def _merged(model: Model, adapter: Path) -> Any:
    """Merged in float32 from what was saved, so that sharded runs do it like others."""
    return PeftModel.from_pretrained(load_model(model), str(adapter)).merge_and_unload()
