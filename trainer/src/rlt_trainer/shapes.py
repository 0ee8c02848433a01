"""How big a model is, without its weights: built on the meta device, where a tensor has a shape and no memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlt_trainer.config.sections import Model
from rlt_trainer.errors import BadConfig
from rlt_trainer.models import lora_config

__all__ = ["Shape", "shape_of"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder. Parameters are counted, tied ones once; the rest are widths in elements."""

    trained: int
    frozen: int
    layers: int
    hidden: int
    queries: int
    """heads × head_dim"""
    keys: int
    """key-value heads × head_dim"""
    feed_forward: int
    vocabulary: int
    ends: int
    """parameters of embedding and output layer"""

    @property
    def parameters(self) -> int:
        return self.trained + self.frozen

    @property
    def biggest_unit(self) -> int:
        """Parameters that a sharding strategy gathers at once: embedding and output layer, or one decoder layer."""
        return max(self.ends, (self.parameters - self.ends) // self.layers)


def shape_of(model: Model) -> Shape:
    """Raises `BadConfig` for a model whose configuration cannot be read here."""
    if _is_path(model.name) and not Path(model.name).is_dir():
        like = "--model.name Qwen/Qwen2.5-7B-Instruct, or a folder that has its config.json"
        raise BadConfig(f"there is no folder {model.name} yet: name a model of its shape, such as {like}")
    try:
        config = AutoConfig.from_pretrained(model.name, revision=model.revision or "main")
        with init_empty_weights():
            empty: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError) as error:
        raise BadConfig(f"model {model.name} cannot be read here: {str(error).splitlines()[0]}") from error
    empty.tie_weights()  # which building without weights undoes
    output = empty.get_output_embeddings()  # type: ignore[no-untyped-call]
    ends = _count({empty.get_input_embeddings().weight, output.weight})
    lora = lora_config(model.lora)
    whole: nn.Module = get_peft_model(empty, lora) if lora else empty
    trained = _count(each for each in whole.parameters() if each.requires_grad)
    return _widths(config.get_text_config(), trained, _count(whole.parameters()) - trained, ends)


def _is_path(name: str) -> bool:
    """Of this machine, whatever the hub has: names there are OWNER/MODEL."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _count(parameters: Iterable[Any]) -> int:
    return sum(each.numel() for each in parameters)


def _widths(config: PretrainedConfig, trained: int, frozen: int, ends: int) -> Shape:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        trained=trained,
        frozen=frozen,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        queries=heads * head_dim,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        feed_forward=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        ends=ends,
    )
