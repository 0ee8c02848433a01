"""Searching long texts for patterns at a fraction of the cost, with the same matches.

Of a pattern is known, from its regular expression alone, which words every match holds and how far from its beginning:
it is tried only before such words, which `str.find` finds a hundred times faster. Case does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, islice
from typing import Final

__all__ = ["Part", "Searched", "matches"]

SHORTEST_WORD: Final = 3  # shorter ones are everywhere; patterns begin with `the`
LIKE_ASCII: Final = (("\u0130", "i"), ("\u0131", "i"), ("\u017f", "s"))
"""What `re.IGNORECASE` takes for an ASCII letter, and `str.lower` does not turn into it alone."""

TRY: Final = 800  # characters of a text that are searched for a word in the time of one try

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Words:
    """At least one of these, in ASCII lower case, begins so many characters after the beginning."""

    words: frozenset[str]
    least: int
    most: int

    def after(self, part: Part) -> Words:
        return Words(self.words, self.least + part.shortest, self.most + part.longest)


@dataclass(frozen=True, slots=True)
class Part:
    """What is true of everything that a part of a regular expression matches."""

    shortest: int
    longest: int
    """Characters, without what is only looked at."""
    holds: tuple[Words, ...] = ()
    letter: str = ""
    """It is just this one, which makes words with its neighbours."""

    def repeated(self, least: int, most: int) -> Part:
        letter = self.letter if least == most == 1 else ""
        return Part(self.shortest * least, self.longest * most, self.holds if least else (), letter)

    @classmethod
    def sequence(cls, parts: Iterable[Part]) -> Part:
        before, run, holds = Part(0, 0), "", list[Words]()
        for part in (*parts, Part(0, 0)):
            if not part.letter and len(run) >= SHORTEST_WORD:
                holds.append(Words(frozenset([run]), before.shortest - len(run), before.longest - len(run)))
            run = run + part.letter if part.letter else ""
            holds += [each.after(before) for each in part.holds]
            before = Part(before.shortest + part.shortest, before.longest + part.longest)
        return replace(before, holds=tuple(sorted(holds, key=_rarity, reverse=True)))

    @classmethod
    def either(cls, parts: Sequence[Part]) -> Part:
        holds = parts[0].holds if len(parts) == 1 else _any([part.holds for part in parts])
        return cls(min(part.shortest for part in parts), max(part.longest for part in parts), holds)


def _any(branches: Sequence[Sequence[Words]]) -> tuple[Words, ...]:
    """What can be said whichever branch it is: by the rarest of each, and by those whose places are known best."""
    if not all(branches):
        return ()
    rarest = [max(holds, key=_rarity) for holds in branches]
    best_placed = [min(holds, key=lambda each: each.most - each.least) for holds in branches]
    return tuple(dict.fromkeys(map(_together, (rarest, best_placed))))


def _rarity(holds: Words) -> int:
    return min(map(len, holds.words))


def _together(holds: Sequence[Words]) -> Words:
    words = frozenset[str]().union(*(each.words for each in holds))
    return Words(words, min(each.least for each in holds), max(each.most for each in holds))


class Searched:
    """One text, for several patterns."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._find = lru_cache(maxsize=None)(self._places_of_one)
        self.places = lru_cache(maxsize=None)(self._places_of_any)

    @cached_property
    def _folded(self) -> str:
        """As long as the text."""
        folded = self.text
        for like, letter in () if folded.isascii() else LIKE_ASCII:
            folded = folded.replace(like, letter)
        return folded.lower()

    def _places_of_any(self, words: frozenset[str]) -> list[int]:
        """Where any of these words begins, in order."""
        return sorted(chain.from_iterable(map(self._find, words)))

    def _places_of_one(self, word: str) -> list[int]:
        places: list[int] = []
        place = self._folded.find(word)
        while place >= 0:
            places.append(place)
            place = self._folded.find(word, place + 1)
        return places


def matches(pattern: re.Pattern[str], of: Part, searched: Searched) -> Iterator[re.Match[str]]:
    """What `pattern.finditer(text)` gives."""
    if not of.holds:
        yield from pattern.finditer(searched.text)
        return
    start = 0
    for first, last in _starts(of, searched):
        start = max(start, first)
        while start <= last:
            match = pattern.match(searched.text, start)
            if match:
                yield match
            start = match.end() if match else start + 1


def _starts(of: Part, searched: Searched) -> list[Range]:
    """Where a match may begin, as seen from the words that it holds, as long as looking for those saves trying."""
    starts: list[Range] = [(0, len(searched.text))]
    few = 1 + len(searched.text) // TRY
    for each in of.holds:
        if sum(last - first + 1 for first, last in starts) <= few * len(each.words):
            break
        own = _joined((place - each.most, place - each.least) for place in searched.places(each.words))
        starts = list(_common(starts, list(own)))
    return starts


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same numbers in ranges that do not overlap. All are of one length, in order."""
    start, end = 0, -1
    for first, last in ranges:
        if first > end:
            if end >= start:
                yield start, end
            start = first
        end = last
    if end >= start:
        yield start, end


def _common(some: Sequence[Range], others: Sequence[Range]) -> Iterator[Range]:
    """What is in both. Neither has ranges that overlap."""
    at = 0
    for start, end in some:
        while at < len(others) and others[at][1] < start:
            at += 1
        for first, last in islice(others, at, None):
            if first > end:
                break
            yield max(start, first), min(end, last)
