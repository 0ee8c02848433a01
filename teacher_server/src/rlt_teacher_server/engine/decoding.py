"""Generates a batch of sequences with `model.forward` and a cache of keys and values.

A batch runs until its last sequence has ended; a sequence that ended, or whose caller has gone, leaves at once. Equal
prompts are read once. Prompts are padded on the left and masked, so that every sequence sees its own positions.
Not here: joining a running batch, paged memory, speculation. That is what vLLM is for.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rlt_client.errors import ItemError
from rlt_teacher_server.engine.base import SampleRequest
from rlt_teacher_server.engine.sampling import pick, processed_logprobs
from rlt_teacher_server.errors import Reason, item_error

__all__ = ["Decoder", "Row"]


@dataclass(slots=True, eq=False)
class Row:
    """One sequence. Its random numbers follow from its seed alone."""

    request: SampleRequest
    done: Callable[[str | ItemError], None]
    """Called in the decoder's thread with the finish reason, or with why there is none."""
    gone: Callable[[], bool]
    """Whether nobody waits for it any more."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    draws: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.draws = random.Random(self.request.seed)  # noqa: S311 sampling must be reproducible


@dataclass(slots=True)
class _Batch:
    """Sequences under way, and the model's state of each; B rows."""

    rows: list[Row]
    cache: DynamicCache
    mask: Tensor
    """[B, T]: 0 where a prompt was padded."""
    logits: Tensor
    """[B, V], of the last position."""
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    def keep(self, positions: list[int]) -> None:
        self.rows = [self.rows[position] for position in positions]
        index = torch.tensor(positions, dtype=torch.long, device=self.mask.device)
        self.cache.batch_select_indices(index)
        for name in ("mask", "logits", "temperature", "top_k", "top_p"):
            setattr(self, name, getattr(self, name)[index])


class Decoder:
    """Args:
    model: a causal language model of transformers, in evaluation mode.
    decode: the text of ids, for stop strings.
    """

    def __init__(self, model: Any, decode: Callable[[Sequence[int]], str]) -> None:
        self._model = model
        self._decode = decode
        takes = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def vocab_size(self) -> int:
        size: int = self._model.get_input_embeddings().num_embeddings
        return size

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], on_step: Callable[[], None] = lambda: None) -> None:
        """Run every row to its end. `on_step` is called before each forward pass."""
        known = self._refuse_unknown(rows)
        if not known:
            return
        on_step()
        batch = self._prefill(known)
        while True:
            self._sample(batch)
            left = [i for i, row in enumerate(batch.rows) if not self._ended(row)]
            if not left:
                return
            if len(left) < len(batch.rows):
                batch.keep(left)
            on_step()
            self._forward(batch)

    def _refuse_unknown(self, rows: Sequence[Row]) -> list[Row]:
        known = []
        for row in rows:
            wrong = next((i for i in row.request.prompt_token_ids if not 0 <= i < self.vocab_size), None)
            if wrong is None:
                known.append(row)
            else:
                detail = f"id {wrong}, the vocabulary has {self.vocab_size} tokens"
                row.done(item_error(Reason.unknown_token, detail))
        return known

    def _prefill(self, rows: list[Row]) -> _Batch:
        """Read each different prompt once, then give every row its own copy of the state."""
        place: dict[tuple[int, ...], int] = {}
        of_row = [place.setdefault(tuple(row.request.prompt_token_ids), len(place)) for row in rows]
        device = self._model.device
        longest = max(map(len, place))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in place], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in place], device=device)
        cache = DynamicCache(config=self._model.config)
        logits = self._call(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        index = torch.tensor(of_row, device=device)
        cache.batch_select_indices(index)
        requests = [row.request for row in rows]
        return _Batch(
            rows,
            cache,
            mask[index],
            logits[index],
            torch.tensor([request.temperature for request in requests], device=device),
            torch.tensor([request.top_k for request in requests], device=device),
            torch.tensor([request.top_p for request in requests], device=device),
        )

    def _forward(self, batch: _Batch) -> None:
        """Read the token that each row sampled last."""
        last = torch.tensor([[row.ids[-1]] for row in batch.rows], device=batch.mask.device)
        batch.mask = torch.cat([batch.mask, torch.ones_like(last)], dim=1)
        positions = batch.mask.sum(-1, keepdim=True) - 1
        batch.logits = self._call(last, batch.mask, positions, batch.cache)

    def _call(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Logits of the last position, [B, V]; `ids` and `positions` are what is new, `mask` covers the cache too."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self._options,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _sample(self, batch: _Batch) -> None:
        logprobs = processed_logprobs(batch.logits, batch.temperature, batch.top_k, batch.top_p)
        draws = [row.draws.random() for row in batch.rows]
        uniform = torch.tensor(draws, dtype=torch.float64, device=logprobs.device)
        ids = pick(logprobs, uniform, batch.temperature == 0)
        sampled = logprobs.gather(1, ids[:, None])[:, 0].tolist()
        for row, token, logprob in zip(batch.rows, ids.tolist(), sampled, strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)

    def _ended(self, row: Row) -> bool:
        if row.gone():
            return True
        reason = self._reason(row)
        if reason is not None:
            row.done(reason)
        return reason is not None

    def _reason(self, row: Row) -> str | ItemError | None:
        request = row.request
        if not math.isfinite(row.logprobs[-1]):
            return item_error(Reason.non_finite_logits, f"at token {len(row.ids)}")
        if row.ids[-1] in request.stop_token_ids or self._spells_stop(row):
            return "stop"
        return "length" if len(row.ids) >= request.max_tokens else None

    def _spells_stop(self, row: Row) -> bool:
        """Whether the newest token completes a stop string. Each token but the last is at least a byte of it."""
        stop = row.request.stop
        if not stop:
            return False
        window = max(len(text.encode()) for text in stop) + 1
        tail = self._decode(row.ids[-window:])
        return any(text in tail for text in stop)
