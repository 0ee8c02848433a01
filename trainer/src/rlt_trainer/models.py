"""The model to train, with the weights in float32 whatever it computes in: updates of 1e-6 vanish in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlt_client.prompts import TextCodec
from rlt_trainer.config.sections import LoRA, Model
from rlt_trainer.errors import BadConfig

__all__ = ["load_codec", "load_model", "lora_config", "without_dropout"]

TOKENIZER_FILES: Final = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "*.jinja")
"""What `TextCodec.of_folder` reads, as far as a repository has it: older ones keep special tokens apart, newer ones
the chat template."""


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
    """The model's tokenizer, as its `tokenizer.json` says. Raises `BadConfig`, `UnusableTokenizer`."""
    folder = Path(model.name)
    return TextCodec.of_folder(folder if folder.is_dir() else _from_hub(model))


def _from_hub(model: Model) -> Path:
    """The tokenizer's files alone, or those of the cache where there is no network."""
    try:
        return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=list(TOKENIZER_FILES)))
    except Exception as error:  # the hub's errors share no base; each means that there is no tokenizer
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise BadConfig(f"the tokenizer of {model.name} cannot be loaded: {reason}") from error


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
