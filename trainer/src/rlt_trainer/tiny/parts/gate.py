"""What a base of the parts task must be able to do, one measure for each document type."""

from __future__ import annotations

import random

import torch
from transformers import LlamaForCausalLM

from rlt_trainer.tiny.fit import IGNORED, collate
from rlt_trainer.tiny.gate import single_op_accuracy
from rlt_trainer.tiny.parts.documents import DOCUMENTS
from rlt_trainer.tiny.parts.recipe import PartsBaseRecipe

PROBES = 200  # documents of each type, which it never saw

PartsGate = dict[str, float]
"""Shares of right greedy predictions, 0 to 1, by document type; `single_op` is of all 488 facts."""


def parts_gate(model: LlamaForCausalLM, recipe: PartsBaseRecipe) -> PartsGate:
    """Measure a base; it passes where the least of the figures is over the recipe's `gate`."""
    rng = random.Random("parts gate")  # noqa: S311 - reproducible data, nothing secret
    found = {"single_op": single_op_accuracy(model)}
    for name, make in DOCUMENTS.items():
        found[name] = _accuracy(model, *collate([make(rng, recipe.document_tokens) for _ in range(PROBES)]))
    return found


def _accuracy(model: LlamaForCausalLM, ids_bt: torch.Tensor, targets_bt: torch.Tensor) -> float:
    with torch.inference_mode():
        got_bt = model(input_ids=ids_bt[:, :-1], use_cache=False).logits.argmax(-1)
    learned_bt = targets_bt[:, 1:] != IGNORED
    return float((got_bt == targets_bt[:, 1:])[learned_bt].float().mean())
