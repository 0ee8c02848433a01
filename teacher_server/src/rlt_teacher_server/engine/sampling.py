"""From logits to the next token: temperature, top-k, top-p, greedy. Pure; one row a sequence.

The order and the edge cases are vLLM's, so that the log-probs of both engines are of one distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pick", "processed_logprobs"]


def processed_logprobs(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Log-probs [B, V], float32, of the distributions to sample from; −inf where a token was cut off.

    Args:
        logits: [B, V]; the others are [B].
        temperature: 0 leaves the row as the model gave it, uncut.
        top_k: the k most likely tokens (and ties of the last one) stay; 0 keeps all.
        top_p: of those, the fewest whose probabilities add up to more than p stay; 1 keeps all.
    """
    greedy = temperature == 0
    logits = logits.float() / torch.where(greedy, 1.0, temperature)[:, None]
    vocabulary = logits.shape[1]
    keep = torch.where(greedy | (top_k <= 0), vocabulary, top_k).clamp(max=vocabulary)
    mass = torch.where(greedy, 1.0, top_p)
    if bool((keep < vocabulary).any()) or bool((mass < 1).any()):
        logits = _cut(logits, keep, mass)
    return logits.log_softmax(dim=-1)


def _cut(logits: Tensor, keep: Tensor, mass: Tensor) -> Tensor:
    ascending, order = logits.sort(dim=-1)
    lowest = ascending.gather(1, (ascending.shape[1] - keep)[:, None])
    ascending = ascending.masked_fill(ascending < lowest, -torch.inf)
    below = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - mass[:, None]
    below[mass >= 1] = False  # rounding must not cut what nobody asked to cut
    below[:, -1] = False
    ascending = ascending.masked_fill(below, -torch.inf)
    return torch.empty_like(ascending).scatter_(1, order, ascending)


def pick(logprobs: Tensor, uniform: Tensor, greedy: Tensor) -> Tensor:
    """One token a row, ids [B]: where `uniform` (0 ≤ u < 1, float64, [B]) falls in the cumulated probabilities.

    One number a row and step makes a row's tokens depend on its own seed only, not on its neighbours.
    """
    cumulated = logprobs.double().exp().cumsum(dim=-1)
    total = cumulated[:, -1:]
    point = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulated, point, right=True)[:, 0]
    drawn = drawn.clamp(max=logprobs.shape[1] - 1)  # a row of NaN: its caller sees the NaN
    return torch.where(greedy, logprobs.argmax(dim=-1), drawn)
