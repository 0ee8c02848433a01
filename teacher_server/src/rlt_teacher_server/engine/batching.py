"""Which sequences run together: one batch for each set of weights, all batches one token at a time in turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch

from rlt_client.errors import ItemError
from rlt_teacher_server.engine.decoding import Batch, Decoder, Row
from rlt_teacher_server.errors import Reason, item_error

__all__ = ["Batches"]

log = logging.getLogger(__name__)


class Batches:
    """Used by one thread."""

    def __init__(self) -> None:
        self._under_way: dict[Decoder, Batch] = {}

    @property
    def size(self) -> int:
        """Sequences in all batches."""
        return sum(len(batch.rows) for batch in self._under_way.values())

    def takes(self, decoder: Decoder) -> bool:
        """Whether a new sequence can begin now."""
        return decoder.joins or decoder not in self._under_way

    def turn(self, new: Sequence[Row]) -> None:
        """One token for every sequence: `ids` and `logprobs` have it, and `ended` says which have their last.

        A failure ends the sequences of the batch that it came from, and no others.
        """
        for decoder, joining in self._started(new).items():
            batch = self._under_way.pop(decoder, None)
            rows = [row for part in (batch, joining) if part is not None for row in part.rows]
            left = _guarded(rows, partial(_step, decoder, batch, joining))
            if left is not None:
                self._under_way[decoder] = left

    def _started(self, new: Sequence[Row]) -> dict[Decoder, Batch | None]:
        """Every decoder that has something to do, with the batch that its new rows make, prompts read."""
        groups: dict[Decoder, list[Row]] = {decoder: [] for decoder in self._under_way}
        for row in new:
            groups.setdefault(row.decoder, []).append(row)
        return {
            decoder: _guarded(rows, partial(decoder.start, rows)) if rows else None for decoder, rows in groups.items()
        }


def _step(decoder: Decoder, batch: Batch | None, joining: Batch | None) -> Batch | None:
    """One more token for each row of both, which are one batch from then on; what is left of it."""
    if batch is not None and batch.prune():
        decoder.read(batch)
        if joining is not None:
            batch.extend(joining)
    else:
        batch = joining
    if batch is None:
        return None
    decoder.sample(batch)
    return batch if batch.prune() else None


def _guarded(rows: Sequence[Row], call: Callable[[], Batch | None]) -> Batch | None:
    try:
        return call()
    except Exception as error:  # the callers get it; other batches are not touched by it
        log.exception("a batch failed")
        for row in rows:
            row.ended = _failure(error)
        return None


def _failure(error: Exception) -> ItemError:
    if isinstance(error, torch.OutOfMemoryError):
        return item_error(Reason.out_of_memory, "a smaller --batch-tokens needs less")
    return item_error(Reason.engine_failed, type(error).__name__)
