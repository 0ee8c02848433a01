"""Samples that end in a loop: the same tokens over and over until the budget is spent.

Looked for in ids, as vLLM's `repetition_detection` does (vllm-project/vllm pull request 35451), but once, at the end of
a sample, and for all periods in one linear pass: the Z-function of the reversed tail says at every lag how far the tail
goes on as it did one lag before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Loop", "find_loop"]

LONGEST_PERIOD: Final = 1024  # a page of text
COPIES: Final = 4  # twice is a quotation, three times a refrain
SHORTEST: Final = 128
"""Tokens of the loop in all: rules, rows of a table, a long number or binary string are shorter."""
TAIL: Final = LONGEST_PERIOD * COPIES


@dataclass(frozen=True, slots=True)
class Loop:
    period: int
    """Tokens that come again and again."""
    tokens: int
    """Tokens of the whole loop, as far as it was looked for (the last `TAIL`)."""


def find_loop(token_ids: Sequence[int]) -> Loop | None:
    """The loop of the shortest period that a sample ends in; its last round may be cut short."""
    tail = token_ids[-TAIL:][::-1]
    for period, same in enumerate(_agreement(tail[:TAIL], LONGEST_PERIOD), start=1):
        if period + same >= max(SHORTEST, COPIES * period):
            return Loop(period, period + same)
    return None


def _agreement(ids: Sequence[int], lags: int) -> list[int]:
    """For each lag 1 … `lags`: how many leading ids are what they are one lag further on (Gusfield's Z-function)."""
    size, left, right = len(ids), 0, 0
    same = [0] * min(size, lags + 1)
    for lag in range(1, len(same)):
        at = min(same[lag - left], right - lag) if lag < right else 0
        if lag + at >= right:
            while lag + at < size and ids[at] == ids[lag + at]:
                at += 1
            left, right = lag, lag + at
        same[lag] = at
    return same[1:]
