"""Patterns of leaks as data: which regular expressions a format may have, and what they leave alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlt_client.formats import FormatError, load_format, shipped_formats
from rlt_client.formats.leaks import LeakPattern, Leaks, shared_patterns

OWN = """
name = "own"
version = "1"
[teacher]
prefill = "<s>{answer}</s><e>"
close = "</e>"
[student]
close = "</t>"
answer = "{answer}"
"""


def load(folder: Path, text: str) -> Leaks:
    path = folder / "own.toml"
    path.write_text(OWN + text)
    return load_format(path).leaks


def names(leaks: Leaks) -> set[str]:
    return {pattern.name for pattern in leaks.all}


ENGLISH = {pattern.name for pattern in shared_patterns("english")}
GERMAN = "[[leaks.patterns]]\nname = 'gegeben'\nregex = 'die (?:gegebene|bekannte) (?:Lösung|Antwort)'\n"


def test_a_format_has_the_shared_patterns_its_own_or_none(tmp_path: Path) -> None:
    assert names(load(tmp_path, "")) == ENGLISH
    assert names(load(tmp_path, GERMAN)) == {*ENGLISH, "gegeben"}
    assert names(load(tmp_path, "[leaks]\nshared = []\n" + GERMAN)) == {"gegeben"}
    assert names(load(tmp_path, "[leaks]\nshared = []\n")) == set()


def test_which_patterns_the_shipped_formats_have() -> None:
    found = {name: names(format.leaks) for name, format in shipped_formats().items()}
    assert found == {"stratos": ENGLISH, "deepseek": ENGLISH, "plain": ENGLISH, "mini": {"answer-for-a-step"}}


def test_patterns_change_no_hash(tmp_path: Path) -> None:
    """Stores and caches are keyed by it: these are the hashes of the formats before they had patterns."""
    assert {name: format.hash for name, format in shipped_formats().items()} == {
        "stratos": "1068502d37a6a098",
        "deepseek": "2cc15a19a61b8a3f",
        "plain": "a7f2288f8b19c9e3",
        "mini": "080557513c74ec42",
    }
    path = tmp_path / "own.toml"
    hashes = set()
    for text in ("", GERMAN, "[leaks]\nshared = []\n"):
        path.write_text(OWN + text)
        hashes.add(load_format(path).hash)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[leaks]\nshared = ['latin']\n", "no shared list 'latin'; there are english"),
        ("[leaks]\nshare = []\n", "leaks.share"),
        (GERMAN + GERMAN, "two patterns are called 'gegeben'"),
        ("[[leaks.patterns]]\nname = 'given-solution'\nregex = 'x'\n", "two patterns are called 'given-solution'"),
        ("[[leaks.patterns]]\nname = 'No Name'\nregex = 'x'\n", "leaks.patterns.0.name"),
        ("[[leaks.patterns]]\nname = 'a'\nregex = '(x'\n", "not a regular expression"),
        ("[[leaks.patterns]]\nname = 'a'\nregex = 'x?'\n", "matches the empty text"),
        ("[[leaks.patterns]]\nname = 'a'\nregex = 'the .* answer'\n", "* has no upper bound"),
    ],
)
def test_a_broken_list_is_named_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(FormatError) as caught:
        load(tmp_path, text)
    assert complaint in str(caught.value)
    assert "own.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("regex", "complaint"),
    [
        ("a+", "no upper bound"),
        ("a{2,}b", "no upper bound"),
        ("(?:a|ab){1,9}c", "several ways"),
        ("(?:a{1,3}){2}c", "several ways"),
        ("(?:x(?:a|b)){0,30}c", "several ways"),
        ("(?:(?:ab?)c){3}", "several ways"),
        (r"(a)b\1", "back-references"),
        (r"a.{0,80}b.{0,80}c.{0,80}d", "531441 ways"),
        ("(?P<name>a)b", "no other"),
        ("(?x)a b", "no other"),
        ("(?P=a)", "no other"),
    ],
)
def test_what_may_take_long_is_refused(regex: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        LeakPattern(name="a", regex=regex)


@pytest.mark.parametrize(
    ("regex", "text"),
    [
        ("the solution", "The\n  Solution"),
        ("the[ -]solution", "the-solution"),
        (r"[(|*+?]{1,3}x", "|+*x"),
        (r"a\+b\ c\|", "a+b c|"),
        (r"[]x]y", "]y"),
        (r"[^\]]y", "xy"),
        (r"so.{0,40}(?:solution|answer)", "so we see the answer"),
        (r"(?:ab){1,3}?c", "ababc"),
        (r"a{2}b?+c", "aabc"),
        (r"(?<!un)known(?= answer)", "known answer"),
    ],
)
def test_what_a_pattern_may_say(regex: str, text: str) -> None:
    assert LeakPattern(name="a", regex=regex).compiled.search(text)


LONG = 60_000
HOSTILE = {
    "words": "the final " * (LONG // 10),
    "beginnings": "we already know the final " * (LONG // 26),
    "white space": "the given" + " " * LONG,
    "lines": "\n" * LONG,
    "one word": "a" * LONG,
    "answers": "the answer is " * (LONG // 14),
    "solution that": "the solution that we have been " * (LONG // 31),
    "quotes": "we're told " * (LONG // 11),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_long_texts_take_linear_time(text: str) -> None:
    """Some 60 ms for 60,000 characters; what backtracks takes seconds or years."""
    began = time.process_time()
    for pattern in (*shared_patterns("english"), *shipped_formats()["mini"].leaks.patterns):
        for _ in pattern.compiled.finditer(text):
            pass
    assert time.process_time() - began < 1.5


def test_the_costliest_pattern_that_is_allowed_takes_linear_time() -> None:
    pattern = LeakPattern(name="a", regex="a.{0,98}b.{0,98}c")
    began = time.process_time()
    assert not pattern.compiled.search("ab" * 5000)
    assert time.process_time() - began < 5
