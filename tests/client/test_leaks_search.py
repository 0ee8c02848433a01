"""Patterns find the same in less time: `find` against what it is a faster way to, `compiled.finditer`."""

from __future__ import annotations

import re
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_client.formats.leaks import LeakPattern, shared_patterns
from rlt_client.formats.searching import Searched

ENGLISH = shared_patterns("english")
LABELLED = tomllib.loads((Path(__file__).parents[1] / "teacher_server" / "leaks_english.toml").read_text())
SENTENCES = [*LABELLED["leaking"], *LABELLED["ordinary"]]
ODD = [
    LeakPattern(name=f"odd-{place}", regex=regex)
    for place, regex in enumerate(
        [
            r"abc{2}d{0,3}answer?",
            r"(?:answer|\bs(?=olution))",
            r"\Aanswer|answer\Z",
            r"(?<=the-)answer(?! is)",
            r"(?:aaa){1,2}b",
            r"(given){2}",
            r"(?:the ){0,2}known",
            r"answ\x65r|\u0073olution",
            r"x{}answer",
            r"[kK]nown(?: )?to",
            r"aba",
            r"^given|known$|.told",
            r"die (?:gegebene|bekannte) (?:Lösung|Antwort)",
            r"(?:(?:final|known) )?answer(?:s|ed)? key",
        ]
    )
]
WORDS = sorted(
    {word for pattern in (*ENGLISH, *ODD) for word in re.findall(r"[A-Za-zö']+", pattern.regex)}
    | {
        "KNOWN",
        "\u212anown",
        "\u017folution",
        "\u0130s",
        "\u0131s",
        "abccanswer",
        "aaaaaab",
        "ababa",
        "x{}answer",
        "x",
        "Lösung",
    }
)
JOINTS = [" ", " ", " ", ", ", ". ", "\n", "  \n   ", " " * 8, " " * 9, "-", "", "\u00a0", "\u2028"]
TEXTS = st.lists(
    st.sampled_from([*WORDS, *SENTENCES]).flatmap(lambda word: st.sampled_from(JOINTS).map(word.__add__)), max_size=60
)


def places(found: object) -> list[tuple[int, int]]:
    return [match.span() for match in found]  # type: ignore[attr-defined]


def assert_same(text: str) -> None:
    searched = Searched(text)
    for pattern in (*ENGLISH, *ODD):
        assert places(pattern.find(searched)) == places(pattern.compiled.finditer(text)), pattern.name


@given(TEXTS.map("".join))
def test_finds_what_the_regular_expression_finds(text: str) -> None:
    assert_same(text)


@given(st.text(st.sampled_from("abcdkKsSiI\u0130\u0131\u017f\u212a thewn"), max_size=200))
def test_finds_the_same_in_any_letters(text: str) -> None:
    assert_same(text)


def test_finds_the_same_in_every_labelled_sentence_and_in_all_together() -> None:
    for sentence in SENTENCES:
        assert_same(sentence)
    for joint in (" ", "\n\n", " x " * 40, " ≤ "):
        assert_same(joint.join(SENTENCES))


def test_case_is_folded_as_regular_expressions_fold_it() -> None:
    """Of all characters: those that match an ASCII letter become it, and none changes the length."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    folded = Searched(every)._folded
    assert len(folded) == len(every)
    matching = {match.start() for match in re.finditer("[a-z0-9]", every, re.IGNORECASE)}
    assert {match.start() for match in re.finditer("[a-z0-9]", folded)} == matching
    assert all(re.fullmatch(folded[place], every[place], re.IGNORECASE) for place in matching)


@pytest.mark.parametrize("regex", [pattern.regex for pattern in ENGLISH], ids=[pattern.name for pattern in ENGLISH])
def test_every_english_pattern_is_tried_near_its_words_only(regex: str) -> None:
    assert LeakPattern(name="a", regex=regex)._part.holds


def test_a_long_text_costs_a_fifth_of_what_it_would() -> None:
    text = "So the sum of the two is even, and we may divide by it as in the first case. " * 250

    def spent(leaks: object) -> float:
        began = time.thread_time()
        leaks()  # type: ignore[operator]
        return time.thread_time() - began

    def found() -> None:
        searched = Searched(text)
        for pattern in ENGLISH:
            list(pattern.find(searched))

    def scanned() -> None:
        for pattern in ENGLISH:
            list(pattern.compiled.finditer(text))

    found()
    assert min(spent(found) for _ in range(5)) < min(spent(scanned) for _ in range(5)) / 5
