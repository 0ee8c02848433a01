"""Which answer a text gives, and whether it is right."""

from __future__ import annotations

import random
import threading
import time
from itertools import chain, combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_client.formats import load_formats
from rlt_client.prompts import TextCodec
from rlt_trainer.answers import check_right_answer, given_answer, text_of, verdict
from rlt_trainer.config.evaluate import Match
from rlt_trainer.errors import BadData
from rlt_trainer.evaluate.boxed import last_boxed
from rlt_trainer.evaluate.countdown import solves
from rlt_trainer.evaluate.mathematics import Mathematician

FORMATS = load_formats()


@pytest.mark.parametrize(
    ("format", "completion", "answer"),
    [
        ("stratos", "hm<|end_of_thought|>\n\n<|begin_of_solution|>It is 7.<|end_of_solution|>", "It is 7."),
        ("stratos", "hm<|end_of_thought|>\n\n<|begin_of_solution|>It is 7.", None),
        ("stratos", "hm<|begin_of_solution|>7<|end_of_solution|>", None),
        ("deepseek", "hm</think>\n\nIt is 7.", "It is 7."),
        ("deepseek", "hm, it is 7", None),
        ("plain", " hm\n[END]\nSolution: 7\n", "7"),
        ("mini", " 36 A +5 41 # 17 $", "17"),
        ("mini", " 36 A +5 41 # 17", None),
        ("mini", " 36 A +5 41 # $", None),
    ],
)
def test_the_answer_stands_between_the_tags_of_the_format(format: str, completion: str, answer: str | None) -> None:
    assert given_answer(FORMATS[format], completion) == answer


def test_an_end_of_text_is_no_part_of_an_answer(tiny_base: Path) -> None:
    codec = TextCodec.of_folder(tiny_base)
    ids = codec.tokenizer.convert_tokens_to_ids(["36", "#", "17", "$"])
    assert text_of(codec, FORMATS["mini"], ids) == "36 # 17 $"  # the format itself writes it
    assert text_of(codec, FORMATS["deepseek"], ids) == "36 # 17"
    assert text_of(codec, FORMATS["deepseek"], ids[:-1]) == "36 # 17"


@pytest.mark.parametrize(
    ("match", "text", "right", "share"),
    [
        (Match.exact, " B  1 D 26", "B 1 D 26\n", 1),
        (Match.exact, "17.0", "17", 0),
        (Match.exact, None, "17", 0),
        (Match.parts, "B 1 D 25", "B 1 D 26", 0.75),
        (Match.parts, "B 1", "B 1 D 26", 0.5),
        (Match.parts, "B 1 D 26 F 3 H 4", "B 1 D 26", 0.5),  # what is written besides is wrong
        (Match.parts, "", "B 1 D 26", 0),
        (Match.countdown, "(25 - 4) * 3 = 63", "25 4 3 = 63", 1),
        (Match.math, None, "17", 0),
        (Match.math, "17.0", "17", 1),
    ],
)
def test_a_share_is_what_is_right(match: Match, text: str | None, right: str, share: float) -> None:
    assert verdict(match, text, right) == share


@pytest.mark.parametrize(
    ("text", "right", "same"),
    [
        (r"\frac12", "0.5", True),
        (r"3\sqrt{2}", r"\sqrt{18}", True),
        (r"3\sqrt{2}", "3", False),  # bare formulas are read whole
        ("The area is $3\\sqrt{2}$.", r"3\sqrt{2}", True),
        ("The answer is 42.", "42", True),
        (r"So \boxed{6}? No: \boxed{\frac{7}{2}}, for 6 is even.", "3.5", True),
        (r"\boxed{6} and then \boxed{7}", "6", False),  # the last one counts
        ("17", r"We add them. Hence \boxed{17}.", True),  # a whole solution is the right answer
        ("x = 3", "3", True),
        ("(1, 2)", r"\left(1,2\right)", True),
        ("1,000", "1000", True),
        (r"\text{(C)}", "C", True),
        ("east", r"\text{east}", True),
        ("west", r"\text{east}", False),
        (r"\boxed{", "17", False),
        ("", "17", False),
    ],
)
def test_mathematics_is_compared_by_value(text: str, right: str, same: bool) -> None:
    assert verdict(Match.math, text, right) == same


def test_mathematics_is_compared_in_any_thread() -> None:
    found: list[float | None] = []
    threads = [threading.Thread(target=lambda: found.append(verdict(Match.math, "4/2", "2"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1.0] * 4


def test_a_comparison_without_end_is_given_up_and_the_next_one_is_made() -> None:
    mathematician = Mathematician(limit=1.0)
    try:
        began = time.monotonic()
        assert mathematician.equal("2^{1000000000}", "5") is None  # signals do not interrupt it
        assert time.monotonic() - began < 120  # sympy is imported in it
        assert any(mathematician.equal("1/2", "0.5") for _ in range(5))  # a busy machine may need a second try
    finally:
        mathematician.close()


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("44 + 19 + 35", True),
        ("44 + 19 + 35 = 98", True),
        ("98 = 44 + 19 + 35", True),
        ("First I add.\n44 + (19 + 35).", True),
        (r"\boxed{44 + 19 + 35 = 98}", True),
        ("35 − (−44) + 19", True),
        ("44 + 19 + 35 = 97", False),
        ("44 + 19 = 63", False),
        ("44 + 19 + 35 + 0", False),
        ("44 + 44 + 10", False),
        ("98", False),
        ("1 = 2 = 44 + 19 + 35", False),
        ("44 ** 19 + 35", False),
        ("__import__('os')", False),
        ("(" * 299, False),
        ("9" * 10_000, False),
        ("", False),
    ],
)
def test_countdown_wants_each_number_once_and_the_target(text: str, right: bool) -> None:
    assert solves(text, "44 19 35 = 98") is right
    assert solves(text, "(44 + 19) + 35") is right


def test_countdown_is_exact_and_divides_by_zero_without_harm() -> None:
    assert solves("8 / (3 - 8 / 3)", "8 3 8 3 = 24")
    assert not solves("1 / (2 - 2)", "1 2 2 = 1")
    assert solves(r"6 \times 4 \div 2", "[6, 4, 2] = 12")


@pytest.mark.parametrize("right", ["98", "so many", "44 19 35", "1 / 0", "1 + 2 = 4"])
def test_what_cannot_be_counted_down_to_is_bad_data(right: str) -> None:
    with pytest.raises(BadData, match="44 19 35 = 98"):
        check_right_answer(Match.countdown, right)


def _expression(numbers: list[int], rng: random.Random) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    cut = rng.randrange(1, len(numbers))
    left, right = _expression(numbers[:cut], rng), _expression(numbers[cut:], rng)
    return f"({left} {rng.choice('+-*')} {right})"


@given(st.lists(st.integers(1, 99), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_any_expression_of_the_numbers_solves_its_own_problem(numbers: list[int], rng: random.Random) -> None:
    expression = _expression(numbers, rng)
    target = eval(expression)  # our own digits
    shuffled = rng.sample(numbers, len(numbers))
    assert solves(f"{expression} = {target}", f"{' '.join(map(str, shuffled))} = {target}")
    assert not solves(expression, f"{' '.join(map(str, shuffled))} = {target + 1}")
    fewer = chain.from_iterable(combinations(numbers, n) for n in range(2, len(numbers)))
    assert not any(solves(expression, f"{' '.join(map(str, some))} = {target}") for some in fewer)


@given(st.text(alphabet="ab{}\\ 1", max_size=20), st.text(alphabet="ab 1", max_size=5))
@settings(max_examples=50)
def test_the_last_box_is_found_whatever_stands_before(before: str, inside: str) -> None:
    assert last_boxed(f"{before} \\boxed{{{inside}{{2}}}} end") == f"{inside}{{2}}".strip()
