"""The model to train, with the weights in float32 whatever it computes in: updates of 1e-6 vanish in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.hub import cached_file

from rlt_client.prompts import TextCodec
from rlt_trainer.config.sections import LoRA, Model
from rlt_trainer.errors import BadConfig

__all__ = ["load_codec", "load_model", "lora_config", "without_dropout"]


def load_model(model: Model) -> PreTrainedModel:
    """Raises `BadConfig` for a model that is not there or cannot be read."""
    options: dict[str, Any] = {"attn_implementation": model.attention} if model.attention else {}
    try:
        return AutoModelForCausalLM.from_pretrained(
            model.name, revision=model.revision or "main", dtype=torch.float32, **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise BadConfig(f"model {model.name} cannot be loaded: {error}") from error


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, which computes while it trains what an engine with its weights computes."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):  # of most decoders, which pass it on
            module.attention_dropout = 0.0  # type: ignore[assignment]  # nn.Module promises tensors and modules only
    return model


def load_codec(model: Model) -> TextCodec:
    """The model's tokenizer, as its `tokenizer.json` says. Raises `UnusableTokenizer`."""
    folder = Path(model.name)
    if not folder.is_dir():
        try:
            folder = Path(str(cached_file(model.name, "tokenizer.json", revision=model.revision))).parent
            cached_file(model.name, "tokenizer_config.json", revision=model.revision)
        except OSError as error:
            raise BadConfig(f"the tokenizer of {model.name} cannot be loaded: {error}") from error
    return TextCodec.of_folder(folder)


def lora_config(lora: LoRA | None) -> LoraConfig | None:
    if lora is None:
        return None
    targets: Any = "all-linear" if lora.targets == ["all-linear"] else lora.targets
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
