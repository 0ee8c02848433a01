"""The model: a small Llama that transformers and vLLM both load from its folder.

Not a Qwen2: for a config of that type `AutoTokenizer` (5.17) puts Qwen2's byte-level BPE in the place of whatever the
folder's tokenizer.json says, and word ids come out as other words' without an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from rlt_trainer.tiny.recipe import ModelShape
from rlt_trainer.tiny.tokenizer import EOS, PAD, VOCABULARY, make_tokenizer, vocabulary


def new_model(shape: ModelShape, seed: int) -> LlamaForCausalLM:
    """Fresh float32 weights; the global random state is left as it was."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_position_embeddings,
        initializer_range=shape.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary()[EOS],
        pad_token_id=vocabulary()[PAD],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]  # annotated only in part


def load_model(folder: Path) -> LlamaForCausalLM:
    """The model of a folder, float32, in evaluation mode, from the disk only.

    Raises:
        FileNotFoundError: the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model in {folder}")  # transformers would take the path for a name on its hub
    with _no_progress_bars():
        model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.eval()  # type: ignore[no-untyped-call]  # as above
    return model


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Weights, config, generation config (greedy, no hidden sampling defaults) and tokenizer."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # as above
        eos_token_id=vocabulary()[EOS], pad_token_id=vocabulary()[PAD]
    )
    with _no_progress_bars():
        model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """For 0.6 MB, transformers' bars are noise between our own lines of progress."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # as above
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # as above
