"""How big a model is, without its weights: built on the meta device, where a tensor has a shape and no memory."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import init_empty_weights
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

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

    @property
    def parameters(self) -> int:
        return self.trained + self.frozen

    @property
    def biggest_unit(self) -> int:
        """Parameters that a sharding strategy gathers at once: embedding and output layer, or one decoder layer."""
        ends = 2 * self.vocabulary * self.hidden
        return max(ends, (self.parameters - ends) // self.layers)


def shape_of(model: Model) -> Shape:
    """Raises `BadConfig` for a model whose configuration cannot be read here."""
    try:
        config = AutoConfig.from_pretrained(model.name, revision=model.revision or "main")
        with init_empty_weights():
            empty: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # as transformers has it
            if lora := lora_config(model.lora):
                empty = get_peft_model(empty, lora)  # type: ignore[arg-type,unused-ignore]
    except (OSError, ValueError, ImportError) as error:
        raise BadConfig(f"model {model.name} cannot be read here: {str(error).splitlines()[0]}") from error
    trained = sum(each.numel() for each in empty.parameters() if each.requires_grad)
    frozen = sum(each.numel() for each in empty.parameters()) - trained
    return _widths(config.get_text_config(), trained, frozen)


def _widths(config: PretrainedConfig, trained: int, frozen: int) -> Shape:
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
    )
