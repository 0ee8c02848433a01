"""A plain loop for models that train from scratch in a minute. Not a trainer: no resuming, no logging, one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from rlt_trainer.tiny.documents import Document
from rlt_trainer.tiny.recipe import Fitting
from rlt_trainer.tiny.tokenizer import PAD, vocabulary

IGNORED = -100
REPORTS = 10  # progress lines in one run


@contextmanager
def one_thread() -> Iterator[None]:
    """At this size two threads on contended cores are several times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def collate(documents: list[Document]) -> tuple[Tensor, Tensor]:
    """Ids and targets, both [B, T], padded on the right; targets are `IGNORED` where nothing is learned."""
    ids_of = vocabulary()
    width = max(len(document.words) for document in documents)
    ids_bt = torch.full((len(documents), width), ids_of[PAD])
    targets_bt = torch.full_like(ids_bt, IGNORED)
    for row, document in enumerate(documents):
        ids = torch.tensor([ids_of[word] for word in document.words])
        learned = torch.tensor(document.learned)
        ids_bt[row, : len(ids)] = ids
        targets_bt[row, : len(ids)] = torch.where(learned, ids, IGNORED)
    return ids_bt, targets_bt


def loss_of(model: LlamaForCausalLM, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
    """Mean nats per learned token. Padding stands on the right, so causal attention needs no mask."""
    logits_btv = model(input_ids=ids_bt[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits_btv.flatten(0, 1), targets_bt[:, 1:].flatten(), ignore_index=IGNORED)


def fit(
    model: LlamaForCausalLM, documents: Iterator[Document], fitting: Fitting, progress: Callable[[str], None]
) -> float:
    """Train in place.

    Returns:
        The mean loss of the last tenth of the steps, in nats per learned token.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=fitting.learning_rate,
        betas=(0.9, fitting.beta2),
        weight_decay=fitting.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, fitting))
    model.train()
    every = max(1, fitting.steps // REPORTS)
    recent: list[float] = []
    for step in range(1, fitting.steps + 1):
        loss = loss_of(model, *collate(list(islice(documents, fitting.batch_size))))
        loss.backward()  # type: ignore[no-untyped-call]  # torch annotates it only in part
        torch.nn.utils.clip_grad_norm_(model.parameters(), fitting.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent = [*recent, loss.item()][-every:]
        if step % every == 0:
            progress(f"step {step}/{fitting.steps}, loss {sum(recent) / len(recent):.3f}")
    model.eval()  # type: ignore[no-untyped-call]  # as above
    return sum(recent) / len(recent)


def rate_at(step: int, fitting: Fitting) -> float:
    """The share of the learning rate used at a step, counted from 0."""
    if step < fitting.warmup_steps:
        return (step + 1) / fitting.warmup_steps
    done = (step - fitting.warmup_steps) / max(1, fitting.steps - fitting.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
