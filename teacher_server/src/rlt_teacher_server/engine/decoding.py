"""Generates sequences with `model.forward` and a cache of keys and values, one token for each at a time.

A sequence that ended, or whose caller has gone, leaves before the next token; new ones join between two tokens. Equal
prompts that come together are read once. Shorter sequences are padded on the left and masked, so that every sequence
sees its own positions. Not here: paged memory, prompts read in pieces, speculation. That is what vLLM is for.
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
from rlt_teacher_server.engine import cache as caches
from rlt_teacher_server.engine.base import SampleRequest
from rlt_teacher_server.engine.sampling import pick, processed_logprobs
from rlt_teacher_server.errors import Reason, item_error

__all__ = ["Batch", "Decoder", "Row"]


@dataclass(slots=True, eq=False)
class Row:
    """One sequence. Its random numbers follow from its seed alone."""

    request: SampleRequest
    decoder: Decoder
    gone: Callable[[], bool] = lambda: False
    """Whether nobody waits for it any more; asked in the decoder's thread."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: str | ItemError | None = None
    """The finish reason, or why there is none; None while it goes on."""
    draws: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.draws = random.Random(self.request.seed)  # noqa: S311 sampling must be reproducible

    @property
    def length(self) -> int:
        return len(self.request.prompt_token_ids) + len(self.ids)


@dataclass(slots=True)
class Batch:
    """Sequences under way, and the model's state of each; B rows."""

    rows: list[Row]
    cache: DynamicCache
    width: int
    """Columns of the cache: what the longest row had read when it was read last."""
    logits: Tensor
    """[B, V], of the last position."""
    knobs: Tensor
    """[B, 3], float64: temperature, top_k, top_p."""

    def prune(self) -> bool:
        """Drop the rows that have ended or are gone; whether there are others."""
        left = [i for i, row in enumerate(self.rows) if row.ended is None and not row.gone()]
        if 0 < len(left) < len(self.rows):
            self.rows = [self.rows[i] for i in left]
            caches.select(self.cache, left, self.logits.device)
            self.logits, self.knobs = self.logits[left], self.knobs[left]
        return bool(left)

    def fit(self, width: int) -> None:
        caches.fit(self.cache, width)
        self.width = width

    def extend(self, other: Batch) -> None:
        """Take in the rows of another one of the same model."""
        width = max(self.width, other.width)
        self.fit(width)
        other.fit(width)
        caches.extend(self.cache, other.cache)
        self.rows = [*self.rows, *other.rows]
        self.logits = torch.cat([self.logits, other.logits])
        self.knobs = torch.cat([self.knobs, other.knobs])


class Decoder:
    """One model. Used by one thread at a time, but for `refuse_unknown`.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        decode: the text of ids, for stop strings.
    """

    def __init__(self, model: Any, decode: Callable[[Sequence[int]], str]) -> None:
        self.model = model
        self.decode = decode
        self.joins = caches.joinable(DynamicCache(config=model.config))
        """Whether rows can join a batch that is under way; of some architectures (state spaces) they cannot."""
        takes = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def vocab_size(self) -> int:
        size: int = self.model.get_input_embeddings().num_embeddings
        return size

    def refuse_unknown(self, ids: Sequence[int]) -> None:
        """Raises `ItemError` (unknown_token)."""
        size = self.vocab_size
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise item_error(Reason.unknown_token, f"id {wrong}, the vocabulary has {size} tokens")

    @torch.inference_mode()
    def start(self, rows: Sequence[Row]) -> Batch:
        """Read each different prompt once, then give every row its own copy of the state."""
        place: dict[tuple[int, ...], int] = {}
        of_row = [place.setdefault(tuple(row.request.prompt_token_ids), len(place)) for row in rows]
        width = max(map(len, place))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in place], device=self.model.device)
        cache = DynamicCache(config=self.model.config)
        logits = self._call(ids, [len(prompt) for prompt in place], cache)
        requests = [row.request for row in rows]
        knobs = [[request.temperature, request.top_k, request.top_p] for request in requests]
        caches.select(cache, of_row, logits.device)
        return Batch(
            list(rows),
            cache,
            width,
            logits[of_row],
            torch.tensor(knobs, dtype=torch.float64, device=logits.device),
        )

    @torch.inference_mode()
    def read(self, batch: Batch) -> None:
        """Read the token that each row sampled last."""
        lengths = [row.length for row in batch.rows]
        if self.joins and batch.width >= max(lengths):
            batch.fit(max(lengths) - 1)  # the longest row has left
        last = torch.tensor([[row.ids[-1]] for row in batch.rows], device=batch.logits.device)
        batch.logits = self._call(last, lengths, batch.cache, batch.width)
        batch.width += 1

    def _call(self, ids: Tensor, lengths: list[int], cache: DynamicCache, width: int = 0) -> Tensor:
        """Logits of the last position, [B, V].

        Args:
            ids: what is new, [B, N].
            lengths: of the sequences, with what is new.
            width: of the cache.
        """
        columns = torch.arange(width + ids.shape[1], device=ids.device)
        positions = columns - (len(columns) - torch.tensor(lengths, device=ids.device))[:, None]
        output = self.model(
            input_ids=ids,
            attention_mask=(positions >= 0).long(),
            position_ids=positions[:, width:].clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            **self._options,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    @torch.inference_mode()
    def sample(self, batch: Batch) -> None:
        """One more token for each row."""
        temperature, top_k, top_p = batch.knobs.unbind(dim=1)
        logprobs = processed_logprobs(batch.logits, temperature.float(), top_k.long(), top_p.float())
        draws = [row.draws.random() for row in batch.rows]
        uniform = torch.tensor(draws, dtype=torch.float64, device=logprobs.device)
        ids = pick(logprobs, uniform, temperature == 0)
        sampled = logprobs.gather(1, ids[:, None])[:, 0].tolist()
        for row, token, logprob in zip(batch.rows, ids.tolist(), sampled, strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.ended = self._end(row)

    def _end(self, row: Row) -> str | ItemError | None:
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
        tail = self.decode(row.ids[-window:])
        return any(text in tail for text in stop)
