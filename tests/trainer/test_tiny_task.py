"""Problems, traces and documents, checked by arithmetic written a second time."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice, pairwise

import pytest

from rlt_trainer.tiny import BaseRecipe, Mixture, Problem, WarmupRecipe, good_trace, leaking_trace, problems
from rlt_trainer.tiny.documents import Document, base_documents, corpus, student_document, teacher_document
from rlt_trainer.tiny.traces import mixed_trace, render

QUESTION = re.compile(r"Q (\d+) A ([+*]\d+) B ([+*]\d+) C ([+*]\d+) D ([+*]\d+)")
# 36 + 5 = 41; 41 · 3 = 123 = 2 · 61 + 1; 1 + 11 = 12; 12 + 5 = 17
EXAMPLE = Problem(36, ("+5", "*3", "+11", "+5"))


def solve(question: str) -> list[int]:
    """The values of a chain, the start first, from the text alone and reduced only at the end."""
    match = QUESTION.fullmatch(question)
    assert match
    total = int(match[1])
    values = [total]
    for operation in match.groups()[1:]:
        operand = int(operation[1:])
        total = total * operand if operation[0] == "*" else total + operand
        values.append(total % 61)
    return values


def test_the_example_of_the_task() -> None:
    assert EXAMPLE.question == "Q 36 A +5 B *3 C +11 D +5"
    assert EXAMPLE.answer == "17"
    assert good_trace(EXAMPLE) == "36 A +5 41 B *3 1 C +11 12 D +5 17 "
    assert leaking_trace(EXAMPLE) == "36 ! 17 ! 17 ! 17 ! 17 "


@pytest.mark.parametrize("held_out", [True, False])
def test_answers_follow_from_the_question_alone(held_out: bool) -> None:
    for problem in problems(1000, seed=3, held_out=held_out):
        values = solve(problem.question)
        assert problem.answer == str(values[-1])
        assert [value for *_, value in problem.steps] == values[1:]


def test_problems_are_different_and_the_same_for_one_seed() -> None:
    drawn = problems(5000, seed=1)
    assert len({problem.question for problem in drawn}) == 5000
    assert problems(5000, seed=1) == drawn
    assert problems(10, seed=1) == drawn[:10]
    assert problems(10, seed=2) != drawn[:10]


def test_no_training_question_of_any_seed_is_held_out() -> None:
    held_out = {problem.question for seed in range(3) for problem in problems(3000, seed)}
    training = {problem.question for seed in range(3) for problem in problems(10_000, seed, held_out=False)}
    warmup = {problem.question for problem, _ in corpus(WarmupRecipe(), seed=0)}
    assert len(warmup) == 10_000
    assert not held_out & (training | warmup)


def test_an_eighth_of_all_questions_is_held_out() -> None:
    rng = random.Random(0)
    operations = ("+1", "+2", "+5", "+11", "+23", "*2", "*3", "*7")
    drawn = [Problem(rng.randrange(61), tuple(rng.choices(operations, k=4))) for _ in range(8000)]
    # binomial: 1000 ± 30, five deviations
    assert 850 < sum(problem.held_out for problem in drawn) < 1150


@pytest.mark.parametrize(("count", "held_out"), [(-1, True), (20_000, True), (120_000, False)])
def test_a_count_that_cannot_be_drawn_is_refused(count: int, held_out: bool) -> None:
    with pytest.raises(ValueError, match="count must be between 0 and"):
        problems(count, held_out=held_out)


def test_no_problems_at_all_is_a_valid_wish() -> None:
    assert problems(0) == []


def test_styles_of_a_step() -> None:
    assert render(EXAMPLE, ["good", "skip", "leak", "good"]) == "36 A +5 41 B *3 ! 17 D +5 17 "
    with pytest.raises(ValueError, match="needs an rng"):
        render(EXAMPLE, ["wrong"] * 4)
    for seed in range(200):
        words = render(EXAMPLE, ["wrong"] * 4, random.Random(seed)).split()
        assert all(shown != right for shown, right in zip(words[3::3], ["41", "1", "12", "17"], strict=True))


def test_the_corpus_has_the_mixture_of_its_recipe() -> None:
    mixture = WarmupRecipe().mixture
    rows = corpus(WarmupRecipe(), seed=0)
    counts: Counter[str] = Counter()
    for problem, trace in rows:
        counts.update(styles_of(problem, trace))
        assert len(trace.split()) <= mixture.longest_trace
        assert trace.endswith(" ")
    # 40,000 steps: a share's deviation is at most .0025
    for style in ("good", "skip", "leak", "wrong"):
        assert counts[style] / 40_000 == pytest.approx(getattr(mixture, style), abs=0.0125)
    # room runs out only where the steps are long and the digressions too
    assert counts["digression"] / 40_000 == pytest.approx(mixture.digression, abs=0.0125)
    all_good = sum(trace.replace("~ ", "") == good_trace(problem) for problem, trace in rows)
    assert all_good / len(rows) == pytest.approx(mixture.good**4, abs=0.0125)


def styles_of(problem: Problem, trace: str) -> list[str]:
    """Read a trace back, step by step."""
    found: list[str] = []
    words = trace.split()[1:]
    for label, operation, value in problem.steps:
        if words[:1] == ["~"]:
            found.append("digression")
            words = words[[word == "~" for word in words].index(False) :]
        if words[0] == "!":
            assert words[1] == problem.answer
            found, words = [*found, "leak"], words[2:]
            continue
        assert words[:2] == [label, operation]
        words = words[2:]
        if words and words[0].isdecimal():
            found, words = [*found, "good" if words[0] == str(value) else "wrong"], words[1:]
        else:
            found.append("skip")
    assert words == []
    return found


def test_a_trace_is_never_over_the_longest() -> None:
    talkative = Mixture(good=1, skip=0, leak=0, wrong=0, digression=1.0, longest_digression=9, longest_trace=20)
    lengths = [len(mixed_trace(EXAMPLE, talkative, random.Random(seed)).split()) for seed in range(100)]
    assert max(lengths) == 20


def test_teacher_and_student_documents() -> None:
    teacher = teacher_document(EXAMPLE, "36 ! 17 ")
    student = student_document(EXAMPLE, "36 ! 17 ")
    assert " ".join(teacher.words) == "Q 36 A +5 B *3 C +11 D +5 = 17 > 36 ! 17 # $"
    assert " ".join(student.words) == "Q 36 A +5 B *3 C +11 D +5 > 36 ! 17 # 17 $"
    assert learned(teacher) == ["36", "!", "17", "#", "$"]
    assert learned(student) == ["36", "!", "17", "#", "17", "$"]


def learned(document: Document) -> list[str]:
    return [word for word, flag in zip(document.words, document.learned, strict=True) if flag]


def test_pretraining_never_shows_what_the_miniature_is_about() -> None:
    for document in islice(base_documents(BaseRecipe(), seed=0), 2000):
        text = " ".join(document.words)
        assert len(document.words) <= 40
        assert not set(document.words) & {"Q", ">", "#", "$", "=", "!", "~"}
        assert not re.search(r"[A-H] \S+ \d+ [A-H]", text), "a chain of two"


def test_what_pretraining_learns_is_determined_by_what_stands_before() -> None:
    for document in islice(base_documents(BaseRecipe(), seed=1), 500):
        words = document.words
        head = words[1 : words.index("|", 1)] if words[0] == "|" else ()
        table = dict(pairwise(head)) if head else {}
        for i, (word, flag) in enumerate(zip(words, document.learned, strict=True)):
            if not flag:
                continue
            if ";" not in words:  # a copy: the word at the same distance before `|`
                assert word == words[i - words.index("|") - 1]
            elif word[0] in "+*":
                assert word == table[words[i - 1]]
            else:
                assert word == str(solve(f"Q {words[i - 3]} A {words[i - 1]} B +0 C +0 D +0")[1])
