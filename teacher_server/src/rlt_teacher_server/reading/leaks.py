"""Places where an explanation refers to having been given the solution."""

from __future__ import annotations

from typing import Final

from rlt_client.formats import Format
from rlt_client.formats.searching import Searched
from rlt_client.schemas.explain import Leak

__all__ = ["find_leaks"]

MOST: Final = 32  # a text that goes round in circles says it a thousand times


def find_leaks(format: Format, text: str) -> list[Leak]:
    """By the format's patterns, in the order of the text; of places that overlap, the one that begins first."""
    searched = Searched(text)
    found = [
        Leak(pattern=pattern.name, start=match.start(), end=match.end(), text=match[0])
        for pattern in format.leaks.all
        for match in pattern.find(searched)
        if match[0]
    ]
    kept: list[Leak] = []
    for leak in sorted(found, key=lambda leak: (leak.start, -leak.end)):
        if not kept or leak.start >= kept[-1].end:
            kept.append(leak)
    return kept[:MOST]
