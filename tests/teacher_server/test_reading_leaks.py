"""Which sentences say that the solution was given, and where."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from rlt_client.formats import shipped_formats
from rlt_client.formats.leaks import Leaks
from rlt_teacher_server.reading import find_leaks
from rlt_trainer.tiny import good_trace, leaking_trace, problems

FORMATS = shipped_formats()
STRATOS, MINI = FORMATS["stratos"], FORMATS["mini"]
LABELLED = tomllib.loads((Path(__file__).parent / "leaks_english.toml").read_text(encoding="utf-8"))


def test_precision_and_recall_on_the_labelled_sentences() -> None:
    """A wrong sentence is shown by name; one of 121 leaking ones is known to be missed."""
    missed = [sentence for sentence in LABELLED["leaking"] if not find_leaks(STRATOS, sentence)]
    wrong = {s: [leak.pattern for leak in found] for s in LABELLED["ordinary"] if (found := find_leaks(STRATOS, s))}
    assert len(LABELLED["leaking"]) == 121
    assert len(LABELLED["ordinary"]) == 132
    assert missed == ["We have the answer already; it was given as 3."]
    assert wrong == {}


def test_every_shared_pattern_is_needed() -> None:
    """Without any one of them a sentence is missed."""
    all_of_them = STRATOS.leaks.all
    for left_out in all_of_them:
        rest = Leaks(shared=(), patterns=tuple(pattern for pattern in all_of_them if pattern is not left_out))
        format = STRATOS.model_copy(update={"leaks": rest})
        assert any(not find_leaks(format, sentence) for sentence in LABELLED["leaking"][:-20]), left_out.name


def test_case_and_line_breaks_do_not_matter() -> None:
    for text in ("THE GIVEN SOLUTION", "the given\nsolution", "The   given\r\n    solution"):
        assert find_leaks(STRATOS, text)


def test_the_place_of_a_leak() -> None:
    text = "First, 3 + 4 = 7. This matches the provided answer. Then, as the solution says, 7 is prime."
    leaks = find_leaks(STRATOS, text)
    assert [text[leak.start : leak.end] for leak in leaks] == [leak.text for leak in leaks]
    assert [leak.text for leak in leaks] == ["provided answer", "the solution says"]
    assert [leak.pattern for leak in leaks] == ["given-solution", "solution-says"]


def test_places_that_overlap_are_one_leak() -> None:
    text = "according to the given solution, 7; matches the given answer."
    places = [(leak.start, leak.end) for leak in find_leaks(STRATOS, text)]
    assert len(places) == 2
    assert places[0][1] <= places[1][0]


def test_no_more_than_a_reader_reads() -> None:
    assert len(find_leaks(STRATOS, "the given solution, " * 1000)) == 32


@pytest.mark.parametrize("name", ["stratos", "deepseek", "plain"])
def test_traces_of_the_tiny_model_leak_by_their_own_pattern_only(name: str) -> None:
    for problem in problems(50, seed=1):
        good, leak = good_trace(problem), leaking_trace(problem)
        assert find_leaks(MINI, good) == []
        assert [found.text for found in find_leaks(MINI, leak)] == [f"! {problem.answer}"] * 4
        assert find_leaks(FORMATS[name], good + leak) == []


def test_a_format_without_patterns_finds_nothing() -> None:
    silent = STRATOS.model_copy(update={"leaks": Leaks(shared=())})
    assert find_leaks(silent, "the given solution") == []
