"""What a base must be able to do before anything is built on it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

import torch
from transformers import LlamaForCausalLM

from rlt_trainer.tiny.documents import copy_document, lookup_document
from rlt_trainer.tiny.fit import IGNORED, collate
from rlt_trainer.tiny.task import LABELS, MODULUS, OPERATIONS, apply
from rlt_trainer.tiny.tokenizer import vocabulary

PROBES = 200  # documents; 800 to 3,600 learned tokens


@dataclass(frozen=True, slots=True)
class Gate:
    """Shares of right greedy predictions, 0 to 1."""

    single_op: float
    lookup: float
    copy: float

    def passed(self, threshold: float) -> bool:
        return min(self.single_op, self.lookup, self.copy) > threshold

    def __str__(self) -> str:
        return f"single operation {self.single_op:.4f}, look-up {self.lookup:.4f}, copy {self.copy:.4f}"


def gate(model: LlamaForCausalLM) -> Gate:
    """Measure a base on all 488 facts and on look-up and copy documents that it never saw."""
    rng = random.Random("gate")  # noqa: S311 - reproducible data, nothing secret
    lookups = [lookup_document(rng, 40) for _ in range(PROBES)]
    copies = [copy_document(rng, 40) for _ in range(PROBES)]
    return Gate(single_op_accuracy(model), _accuracy(model, *collate(lookups)), _accuracy(model, *collate(copies)))


def single_op_accuracy(model: LlamaForCausalLM) -> float:
    """The share of the 488 facts `value label operation` that the model completes with the right value."""
    ids_of = vocabulary()
    facts = list(product(range(MODULUS), OPERATIONS))
    rows = [[str(value), LABELS[i % len(LABELS)], operation] for i, (value, operation) in enumerate(facts)]
    ids_bt = torch.tensor([[ids_of[word] for word in row] for row in rows])
    wanted_b = torch.tensor([ids_of[str(apply(value, operation))] for value, operation in facts])
    with torch.inference_mode():
        got_b = model(input_ids=ids_bt, use_cache=False).logits[:, -1].argmax(-1)
    return float((got_b == wanted_b).float().mean())


def _accuracy(model: LlamaForCausalLM, ids_bt: torch.Tensor, targets_bt: torch.Tensor) -> float:
    with torch.inference_mode():
        got_bt = model(input_ids=ids_bt[:, :-1], use_cache=False).logits.argmax(-1)
    learned_bt = targets_bt[:, 1:] != IGNORED
    return float((got_bt == targets_bt[:, 1:])[learned_bt].float().mean())
