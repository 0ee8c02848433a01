"""Sequences that join a batch under way, on models of several kinds: each gives what it gives alone."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from rlt_teacher_server.engine.base import SampleRequest
from rlt_teacher_server.engine.batching import Batches
from rlt_teacher_server.engine.decoding import Decoder, Row

WINDOW = 8
SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
HYBRID = {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 16}
JOINABLE = {
    "full attention": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "a window": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=WINDOW)),
    "both": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, **HYBRID, num_key_value_heads=1, sliding_window=WINDOW)
    ),
}


def decoder_of(make):
    torch.manual_seed(0)
    return Decoder(make().eval(), str)


def row(decoder, seed, prompt, budget):
    return Row(SampleRequest(list(range(1, prompt + 1)), budget, seed), decoder)


def run(*arrivals):
    """Rows by the turn at which they come; all run to their end."""
    batches, turn, widths = Batches(), 0, []
    while batches.size or any(when >= turn for when, _ in arrivals):
        batches.turn([row for when, row in arrivals if when == turn])
        widths += [batch.width for batch in batches._under_way.values()]
        turn += 1
    return widths


@pytest.mark.parametrize("kind", JOINABLE)
def test_rows_that_come_and_go(kind):
    """Long before short, short before long, within the window and beyond it, into a batch whose longest has left."""
    decoder = decoder_of(JOINABLE[kind])
    assert decoder.joins
    plan = [(0, 30, 4), (0, 3, 30), (2, 12, 20), (3, 2, 3), (6, 25, 6), (14, 1, 20), (15, 9, 1), (20, 5, 25)]
    together = [(turn, row(decoder, seed, prompt, budget)) for seed, (turn, prompt, budget) in enumerate(plan)]
    run(*together)
    for seed, (_, prompt, budget) in enumerate(plan):
        alone = row(decoder, seed, prompt, budget)
        run((0, alone))
        joined = together[seed][1]
        assert joined.ids == alone.ids
        assert joined.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert joined.ended == "length"


@pytest.mark.parametrize("kind", JOINABLE)
def test_a_batch_that_never_ends_does_not_grow(kind):
    """Ten rows of 5 + 12 tokens, each coming before the last one has left: columns that none of them needs go."""
    decoder = decoder_of(JOINABLE[kind])
    widths = run(*((8 * i, row(decoder, i, 5, 12)) for i in range(10)))
    assert len(widths) > 80
    assert max(widths) < 5 + 12


def test_a_state_that_is_no_cache_of_keys_cannot_be_joined():
    decoder = decoder_of(lambda: MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2)))
    assert not decoder.joins
