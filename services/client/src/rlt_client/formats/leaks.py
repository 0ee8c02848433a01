"""Patterns by which an explanation is found to refer to having been given the solution: what they may say, as data.

A pattern is a regular expression of a subset that is searched in linear time: every repetition is bounded, and none of
varying length stands inside another. Case does not matter; a space stands for any white space, as lines may be broken.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rlt_client.formats.searching import Part, Searched, matches

__all__ = ["LeakPattern", "Leaks", "shared_patterns"]

MOST_WAYS: Final = 10_000
"""In which the repetitions of one pattern may stretch, together: what a character of the text costs at most."""
MOST_SPACE: Final = 8
WHITE_SPACE: Final = rf"\s{{1,{MOST_SPACE}}}+"  # possessive: one way to match
TOKEN: Final = re.compile(
    r"(?P<escape>\\.)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<open>\((?:\?(?::|=|!|<=|<!)|(?!\?)))|(?P<close>\))"
    r"|(?P<repeat>\?|\*|\+|\{(?P<least>\d*)(?P<to>,(?P<most>\d*))?\})(?P<kind>[?+]?)|(?P<either>\|)|(?P<space> )|.",
    re.DOTALL,
)
LETTER: Final = re.compile(r"[a-z0-9]")
NUMBERED: Final = re.compile(r"\\[0xuUN]|\{\}")
LOOKS: Final = ("(?=", "(?!", "(?<=", "(?<!")
PLACES: Final = (r"\A", r"\b", r"\B", r"\Z", "^", "$")


class LeakPattern(BaseModel):
    """One pattern by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    regex: str = Field(min_length=1)

    @field_validator("regex")
    @classmethod
    def _linear(cls, regex: str) -> str:
        _check_linear(regex)
        try:
            compiled = _compiled(regex)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if compiled.match(""):
            raise ValueError("it matches the empty text")
        return regex

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        return _compiled(self.regex)

    @cached_property
    def _part(self) -> Part:
        return Part(0, 0) if NUMBERED.search(self.regex) else _branches(TOKEN.finditer(self.regex))

    def find(self, searched: Searched) -> Iterator[re.Match[str]]:
        """What `compiled.finditer` finds in the text, much faster where the pattern holds words."""
        return matches(self.compiled, self._part, searched)


class Leaks(BaseModel):
    """The patterns of one format: shared lists by name, and its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shared: tuple[str, ...] = Field(default=("english",), description="shipped lists; none turns them off")
    patterns: tuple[LeakPattern, ...] = ()

    @model_validator(mode="after")
    def _known_and_unlike(self) -> Leaks:
        names = [pattern.name for pattern in self.all]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two patterns are called {twice!r}")
        return self

    @cached_property
    def all(self) -> tuple[LeakPattern, ...]:
        shared = [pattern for name in self.shared for pattern in shared_patterns(name)]
        return (*shared, *self.patterns)


def shared_patterns(name: str) -> tuple[LeakPattern, ...]:
    """A list that ships with this package. Raises `ValueError` where there is none of this name."""
    lists = _shared_lists()
    if name not in lists:
        raise ValueError(f"no shared list {name!r}; there are {', '.join(sorted(lists))}")
    return lists[name]


@cache
def _shared_lists() -> dict[str, tuple[LeakPattern, ...]]:
    folder = resources.files("rlt_client.formats") / "leak_lists"
    files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    return {file.name.removesuffix(".toml"): _read(file.read_text(encoding="utf-8")) for file in files}


def _read(text: str) -> tuple[LeakPattern, ...]:
    return tuple(map(LeakPattern.model_validate, tomllib.loads(text)["patterns"]))


def _compiled(regex: str) -> re.Pattern[str]:
    spelled = TOKEN.sub(lambda found: WHITE_SPACE if found["space"] else found[0], regex)
    return re.compile(spelled, re.IGNORECASE)


@dataclass
class _Group:
    """What stands in a pair of brackets so far."""

    varies: bool = False
    """Something in it can match in several ways."""


def _check_linear(regex: str) -> None:
    """Raises `ValueError` for what could take more than linear time."""
    ways, groups, last = 1, [_Group()], _Group()
    for token in TOKEN.finditer(regex):
        if token["open"]:
            groups.append(_Group())
        elif token["close"] and len(groups) > 1:
            last = groups.pop()
            groups[-1].varies |= last.varies
        elif token["either"]:
            groups[-1].varies = True
        elif token["repeat"]:
            ways *= _ways(token, last)
            groups[-1].varies = True
        elif token[0] == "(":
            raise ValueError("a bracket may begin with (?:, (?=, (?!, (?<= or (?<!, and with no other (?")
        elif token["escape"] and token[0][1] in "123456789":
            raise ValueError("back-references take more than linear time")
        if not token["close"]:
            last = _Group()
    if ways > MOST_WAYS:
        raise ValueError(f"its repetitions may stretch in {ways} ways, at most {MOST_WAYS}")


def _ways(token: re.Match[str], repeated: _Group) -> int:
    """In how many ways one repetition may stretch."""
    least, most = _bounds(token)
    if most is None:
        raise ValueError(f"{token[0]} has no upper bound: write {{0,40}} or the like")
    if most > 1 and repeated.varies:
        raise ValueError(f"{token[0]} repeats what can itself match in several ways")
    return 1 if token["kind"] == "+" else most - least + 1


def _bounds(token: re.Match[str]) -> tuple[int, int | None]:
    if token["repeat"] in "?*+":
        return {"?": (0, 1), "*": (0, None), "+": (1, None)}[token["repeat"]]
    least = int(token["least"] or 0)
    if token["to"] is None:
        return least, least
    return least, int(token["most"]) if token["most"] else None


def _branches(tokens: Iterator[re.Match[str]]) -> Part:
    """Of what stands until the bracket that is open closes."""
    branches: list[list[Part]] = [[]]
    for token in tokens:
        if token["close"]:
            break
        if token["either"]:
            branches.append([])
        elif token["repeat"]:
            least, most = _bounds(token)
            assert most is not None  # `_check_linear` saw to it
            branches[-1][-1] = branches[-1][-1].repeated(least, most)
        else:
            branches[-1].append(_part(token, tokens))
    return Part.either([Part.sequence(branch) for branch in branches])


def _part(token: re.Match[str], tokens: Iterator[re.Match[str]]) -> Part:
    if token["open"]:
        inside = _branches(tokens)
        return Part(0, 0) if token[0] in LOOKS else inside
    if token["space"]:
        return Part(1, MOST_SPACE)
    if token[0] in PLACES:
        return Part(0, 0)
    letter = token[0].lower()
    return Part(1, 1, letter=letter if LETTER.fullmatch(letter) else "")
