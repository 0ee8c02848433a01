"""The word-level tokenizer: 87 words separated by white space, and no word for anything else.

A text with another word cannot be encoded: `tokenizers` raises, because an unknown token would be scored as if it
were what somebody wrote.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from rlt_trainer.tiny.task import LABELS, MODULUS, OPERATIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "$"
SIGNS = ("Q", "=", ">", "#", EOS, ";", "!", "~", "|")
VOCABULARY = (*map(str, range(MODULUS)), *OPERATIONS, *LABELS, *SIGNS, PAD)


@cache
def vocabulary() -> dict[str, int]:
    """Word → id."""
    return {word: i for i, word in enumerate(VOCABULARY)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A transformers tokenizer with `$` as end of text and no chat template; decoding puts one space between words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel(vocabulary()))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers annotates it only in part
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
