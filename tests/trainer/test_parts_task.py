"""The parts task: questions by use, styles of traces, the corpus, what pre-training shows and does not."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from rlt_client.formats import shipped_formats
from rlt_trainer.tiny import make_tokenizer
from rlt_trainer.tiny.parts import (
    CORPORA,
    PartsBaseRecipe,
    PartsMixture,
    PartsProblem,
    Use,
    good_parts_trace,
    leaking_parts_trace,
    parts_corpus,
    parts_problems,
    style_of,
)
from rlt_trainer.tiny.parts.documents import DOCUMENTS, parts_base_documents
from rlt_trainer.tiny.parts.traces import mixed_parts_trace, render_parts
from rlt_trainer.tiny.task import apply

EXAMPLE = PartsProblem((36, 12, 7, 19), (("+5", "*3"), ("+1", "*2"), ("+5", "*3"), ("+1", "*2")))
# 36 + 5 = 41, 41 · 3 = 123 = 2 · 61 + 1; 12 + 1 = 13, · 2 = 26; 7 + 5 = 12, · 3 = 36; 19 + 1 = 20, · 2 = 40
GOOD = "A 36 +5 41 B *3 1 C 12 +1 13 D *2 26 E 7 +5 12 F *3 36 G 19 +1 20 H *2 40 "


def test_a_problem_as_text() -> None:
    assert EXAMPLE.question == "Q A 36 +5 B *3 C 12 +1 D *2 E 7 +5 F *3 G 19 +1 H *2"
    assert EXAMPLE.answer == "B 1 D 26 F 36 H 40"
    assert good_parts_trace(EXAMPLE) == GOOD
    assert leaking_parts_trace(EXAMPLE) == "A 36 +5 B ! 1 C 12 +1 D ! 26 E 7 +5 F ! 36 G 19 +1 H ! 40 "


def test_the_uses_share_no_question_whatever_the_seeds() -> None:
    drawn = {use: {each for seed in range(3) for each in parts_problems(300, use, seed)} for use in Use}
    assert all(len(found) > 850 for found in drawn.values()), "seeds draw different questions"
    for use, found in drawn.items():
        assert all(each.use is use for each in found)
    assert len({each.question for found in drawn.values() for each in found}) == sum(map(len, drawn.values()))
    assert frozenset().union(*(use.value for use in Use)) == set(range(8))


def test_the_same_seed_draws_the_same_questions() -> None:
    assert parts_problems(50, Use.test, 4) == parts_problems(50, Use.test, 4)
    assert parts_problems(50, Use.test, 4)[:20] == parts_problems(20, Use.test, 4)


def test_the_styles_of_a_part() -> None:
    mixed = render_parts(EXAMPLE, ["good", "skip", "leak", "good"])
    assert mixed == "A 36 +5 41 B *3 1 C 12 +1 D *2 E 7 +5 F ! 36 G 19 +1 20 H *2 40 "
    with pytest.raises(ValueError, match="needs an rng"):
        render_parts(EXAMPLE, ["wrong"] * 4)
    for seed in range(100):
        words = render_parts(EXAMPLE, ["wrong"] * 4, random.Random(seed)).split()
        for part, first, second in zip(EXAMPLE.parts, words[3::7], words[6::7], strict=True):
            assert int(first) != part.values[0]
            assert int(second) == apply(int(first), part.operations[1]), "wrong, and consistent"


@pytest.mark.parametrize(
    ("trace", "good", "leaked", "digresses"),
    [
        (GOOD, 4, 0, False),
        (f"~ {GOOD.replace('C', '~ ~ C')}", 4, 0, True),
        (render_parts(EXAMPLE, ["good", "skip", "leak", "leak"]), 1, 2, False),
        (render_parts(EXAMPLE, ["wrong"] * 4, random.Random(0)), 0, 0, False),
        ("", 0, 0, False),
        ("! 1 ! 26 ! 36 ! 40 A", 0, 1, False),
        (GOOD.replace("41", "42"), 3, 0, False),
        (f"{GOOD}7 ", 3, 0, False),
        ("A 36 +5 41 B *3 1 " * 3, 1, 0, False),
    ],
)
def test_a_trace_is_read_whoever_wrote_it(trace: str, good: int, leaked: int, digresses: bool) -> None:
    found = style_of(EXAMPLE, trace)
    assert (found.good_parts, found.leaked_parts, found.digresses) == (good, leaked, digresses)
    assert found.words == len(trace.split())


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_corpus_has_the_mixture_of_its_recipe(name: str) -> None:
    mixture = CORPORA[name]
    assert mixture.good + mixture.skip + mixture.leak + mixture.wrong == pytest.approx(1)
    rows = parts_corpus(4_000, mixture)
    assert len({problem.question for problem, _ in rows}) == 4_000
    assert {problem.use for problem, _ in rows} == {Use.corpus}
    styles = [style_of(problem, trace) for problem, trace in rows]
    # 16,000 parts: a share's deviation is at most .0040; of 4,000 traces' digressions (1 − .9^4 = .344) .0075
    assert sum(each.good_parts for each in styles) / 16_000 == pytest.approx(mixture.good, abs=0.016)
    assert sum(each.leaked_parts for each in styles) / 16_000 == pytest.approx(mixture.leak, abs=0.016)
    assert sum(each.digresses for each in styles) / 4_000 == pytest.approx(1 - 0.9**4, abs=0.03)
    assert all(each.words <= mixture.longest_trace for each in styles)


def test_a_good_trace_is_too_rare_in_corpus_a_and_not_in_b() -> None:
    assert [CORPORA[name].good ** 4 for name in "ab"] == pytest.approx([0.000207, 0.003906], rel=0.01)


def test_a_trace_is_never_over_the_longest() -> None:
    talkative = PartsMixture(good=1, skip=0, leak=0, wrong=0, digression=1.0, longest_digression=9, longest_trace=33)
    lengths = [len(mixed_parts_trace(EXAMPLE, talkative, random.Random(seed)).split()) for seed in range(100)]
    assert max(lengths) == 33


def test_the_format_mini_and_the_words_of_the_chain_task_spell_it() -> None:
    mini, tokenizer = shipped_formats()["mini"], make_tokenizer()
    told = mini.teacher.prefill.format(answer=EXAMPLE.answer)
    text = f"{EXAMPLE.question}{told}{GOOD}{mini.teacher.close}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.replace("  ", " ")
    assert mini.parse(f"{mini.student.open}{GOOD}# {EXAMPLE.answer} $") == (f" {GOOD}", EXAMPLE.answer)


def test_pretraining_shows_no_question_no_explanation_and_no_two_operations_in_a_row() -> None:
    for document in islice(parts_base_documents(PartsBaseRecipe(), seed=0), 2_000):
        text = " ".join(document.words)
        assert len(document.words) <= PartsBaseRecipe().document_tokens
        assert not set(document.words) & {"Q", ">", "=", "!", "~"}
        for start, first, middle, second, last in re.findall(_TWO_IN_A_ROW, text):
            results = apply(int(start), first) == int(middle) and apply(int(middle), second) == int(last)
            assert not results or "#" in text, "random results may agree with each other by chance only"


_TWO_IN_A_ROW = r"[A-H] (\d+) ([+*]\d+) (\d+) [A-H] ([+*]\d+) (\d+)"


@pytest.mark.parametrize("kind", ["lookup", "recall"])
def test_what_is_looked_up_stands_in_the_table(kind: str) -> None:
    rng = random.Random(0)
    for _ in range(300):
        document = DOCUMENTS[kind](rng, 60)
        words = list(document.words)
        end = words.index("|", 1)
        table = " ".join(words[1:end])
        for entry in _entries(words[end + 1 :]):
            label = next(word for word in entry if word.isalpha())
            after = entry[entry.index(label) + 1 :]
            shown = after[:2] if label in "ACEG" else after[:1]
            assert f"{label} {' '.join(shown)}" in table
            if kind == "lookup":
                start = shown[0] if label in "ACEG" else entry[0]
                assert after[-1] == str(apply(int(start), shown[-1]))


def test_what_is_copied_stands_before_the_tag() -> None:
    rng = random.Random(0)
    for _ in range(300):
        words = list(DOCUMENTS["copy"](rng, 60).words)
        tag = words.index("#")
        copied = words[tag + 1 : -1]
        assert copied[::2] == ["B", "D", "F", "H"]
        assert words[-1] == "$"
        for label, value in zip(copied[::2], copied[1::2], strict=True):
            place = words.index(label)
            assert words[place + 2] == value


def _entries(words: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for word in words:
        if word == ";":
            found.append([])
        else:
            found[-1].append(word)
    return [entry for entry in found if entry]


def test_shares_of_documents_are_those_of_the_recipe() -> None:
    only = replace(PartsBaseRecipe(), fact_share=0, lookup_share=0, recall_share=0, copy_share=1)
    assert all("#" in document.words for document in islice(parts_base_documents(only, 0), 50))
    found = Counter("#" in document.words for document in islice(parts_base_documents(PartsBaseRecipe(), 0), 2_000))
    assert found[True] / 2_000 == pytest.approx(0.2, abs=0.04)  # deviation .009
