"""Models of a given shape with random weights, and a word for each of their ids: speed does not depend on either."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reward_bench.shapes import QWEN_05B, Shape
from rlt_trainer.tiny.tokenizer import EOS, PAD, VOCABULARY

__all__ = ["QWEN_05B", "QWEN_15B", "SMALL", "save_random"]

QWEN_15B: Final = Shape("Qwen2.5-1.5B", 1536, 28, 12, 2, 8960, 151_936, True)
SMALL: Final = Shape("small", 64, 2, 2, 2, 160, 512, True)  # for trying things out; vLLM wants head_dim 32 or more
POSITIONS: Final = 32_768


def save_random(shape: Shape, folder: Path, dtype: torch.dtype, *, seed: int = 0) -> Any:
    """Write a model that every server of the platform takes; its first words are the miniature's, so format `mini`
    fits.

    A Llama in Qwen's shape: for a Qwen2 transformers would put Qwen's own tokenizer in the place of the folder's.
    """
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(_config(shape))  # type: ignore[no-untyped-call]  # annotated only in part
    model.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder)
    _tokenizer(shape.vocab).save_pretrained(folder)
    return model


def _config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=VOCABULARY.index(EOS),
        pad_token_id=VOCABULARY.index(PAD),
    )


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    words = [*VOCABULARY, *(f"w{number}" for number in range(size - len(VOCABULARY)))]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # as above
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
    )
