"""Widths of key and value caches, so that sequences can join others that are under way.

A cache of width W holds its sequences' last W positions, aligned on the right; what is left of a shorter sequence is
masked, so zeros are as good as anything there. Works in place, on what transformers keeps in a `DynamicCache`.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["extend", "fit", "joinable", "select"]

KINDS: Final = (DynamicLayer, DynamicSlidingWindowLayer)  # not their subclasses: those keep states of other kinds too


def joinable(cache: DynamicCache) -> bool:
    """Whether `fit` and `extend` know all that is in it: keys and values, with a window or without."""
    return all(type(layer) in KINDS for layer in cache.layers)


def fit(cache: DynamicCache, width: int) -> None:
    """Give a joinable cache another width; columns come and go on the left."""
    for layer in _filled(cache):
        want = width
        if isinstance(layer, DynamicSlidingWindowLayer):
            want = min(width, layer.sliding_window - 1)  # what transformers keeps
            layer.cumulative_length = width
        layer.keys, layer.values = _columns(layer.keys, want), _columns(layer.values, want)


def extend(cache: DynamicCache, other: DynamicCache) -> None:
    """Put another joinable cache of the same width below, as more rows."""
    for layer, more in zip(_filled(cache), _filled(other), strict=True):
        layer.keys = torch.cat([layer.keys, more.keys])
        layer.values = torch.cat([layer.values, more.values])


def select(cache: DynamicCache, rows: list[int], device: torch.device) -> None:
    """Keep these rows, in this order; any of them more than once."""
    cache.batch_select_indices(torch.tensor(rows, dtype=torch.long, device=device))


def _filled(cache: DynamicCache) -> list[Any]:
    layers: list[Any] = cache.layers
    return [layer for layer in layers if layer.is_initialized]


def _columns(states: torch.Tensor, want: int) -> torch.Tensor:
    """Of states [B, H, T, D], the last `want` columns, or zeros before them."""
    spare = states.shape[-2] - want
    return states[:, :, spare:] if spare >= 0 else pad(states, (0, 0, -spare, 0))
