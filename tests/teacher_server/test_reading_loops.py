"""Which samples end in a loop, and which only repeat themselves."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_client.formats import shipped_formats
from rlt_client.prompts import TextCodec, content
from rlt_teacher_server.reading import Loop, find_loop
from rlt_teacher_server.reading.loops import COPIES, LONGEST_PERIOD, SHORTEST, TAIL
from rlt_trainer.tiny import good_trace, leaking_trace, make_tokenizer, problems

MINI = shipped_formats()["mini"]


def by_definition(ids: list[int]) -> Loop | None:
    """The shortest period at which the end repeats itself often and long enough, by trying all."""
    tail = ids[-TAIL:]
    for period in range(1, min(LONGEST_PERIOD, len(tail) - 1) + 1):
        length = period
        while length < len(tail) and tail[-1 - length] == tail[-1 - length + period]:
            length += 1
        if length >= SHORTEST and length >= COPIES * period:
            return Loop(period, length)
    return None


@settings(max_examples=200, deadline=None)
@given(
    head=st.lists(st.integers(0, 3), max_size=200),
    unit=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    copies=st.integers(0, 140),
    rest=st.integers(0, 59),
    tail=st.lists(st.integers(0, 3), max_size=3),
)
def test_as_defined(head: list[int], unit: list[int], copies: int, rest: int, tail: list[int]) -> None:
    ids = [*head, *unit * copies, *unit[:rest], *tail][-5000:]
    assert find_loop(ids) == by_definition(ids)


@pytest.mark.parametrize("period", [1, 2, 7, 33, 200, 700, 1024])
def test_a_loop_is_found_wherever_it_is_cut_off(period: int) -> None:
    unit = list(range(10, 10 + period))
    copies = max(COPIES, SHORTEST // period + 1)
    for rest in {0, 1, period // 2, period - 1}:
        found = find_loop([5] * 300 + list(range(2000, 2500)) + unit * copies + unit[:rest])
        assert found is not None
        assert found.period == period


@pytest.mark.parametrize("period", [40, 200, 1024])
def test_three_times_the_same_is_a_refrain(period: int) -> None:
    unit = list(range(period))
    assert find_loop([*range(5000, 6000), *unit * 3]) is None


def test_a_loop_that_the_sample_got_out_of_is_none() -> None:
    assert find_loop([*[7] * 3000, *range(100, 110)]) is None


def test_what_came_long_before_the_end_does_not_matter() -> None:
    assert find_loop([*range(20_000), *[7] * 200]) == Loop(1, 200)


def test_nothing_to_repeat() -> None:
    assert find_loop([]) is None
    assert find_loop([1]) is None


DRAWN = random.Random(3)
ORDINARY = {
    "a rule": "Total\n" + "-" * 100,
    "rows of a table": "|a|b|\n|---|---|\n" + "| 1 | 2 |\n" * 6,
    "a long number": "1/3 = 0." + "3" * 90 + "…",
    "zeros": "a googol is 1" + "0" * 100,
    "binary": "so the word is " + "10" * 40,
    "a list": "".join(f"- case {n}: the sum is even, so it holds\n" for n in range(200)),
    "steps that differ in a number": "".join(f"Step {n}: add 2 and get {2 * n}.\n" for n in range(500)),
    "a multiplication table": "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 10) for b in range(1, 10)),
    "a matrix of zeros": "0 0 0 0\n" * 8,
    "laughter": "ha " * 40,
    "digits of pi, twice": "3.14159265358979323846 " * 2,
}


@pytest.fixture(scope="module")
def characters() -> TextCodec:
    """One token a character: loops are as long as they can be."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=backend))  # type: ignore[no-untyped-call]  # untyped in transformers


@pytest.mark.parametrize("text", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_repetition_is_none(characters: TextCodec, text: str) -> None:
    assert find_loop(characters.encode([content(text)]).ids) is None


@pytest.mark.parametrize("text", ["Wait, let me check again. ", "so 2 + 2 = 4, and ", "\n\n", "ha", "!"])
def test_the_same_sentence_without_end_is_a_loop(characters: TextCodec, text: str) -> None:
    assert find_loop(characters.encode([content("First, we add. " + text * 200)]).ids) is not None


def test_traces_of_the_tiny_model_are_none() -> None:
    codec = TextCodec(make_tokenizer())
    for problem in problems(100, seed=2):
        for trace in (good_trace(problem), leaking_trace(problem), "~ " * 40 + good_trace(problem)):
            assert find_loop(codec.encode([content(trace)]).ids) is None
    assert find_loop(codec.encode([content("36 A +5 " + "A B " * 60)]).ids) is None
    assert find_loop(codec.encode([content("36 A +5 " + "A B " * 100)]).ids) == Loop(2, 200)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), words=st.integers(2, 50))
def test_random_text_of_few_words_is_none(seed: int, words: int) -> None:
    drawn = random.Random(seed)
    assert find_loop([drawn.randrange(words) for _ in range(5000)]) is None


HOSTILE = {
    "one token": [1] * 16_000,
    "all different": list(range(16_000)),
    "almost a loop": ([1] * 1023 + [2]) * 16,
    "fibonacci": [],
    "square-free words of two": [bin(n).count("1") % 2 for n in range(16_384)],
    "rows that end late": ([*range(1100)] * 15)[:16_000],
}
word, following = [0], [0, 1]
while len(following) < 16_000:
    word, following = following, following + word
HOSTILE["fibonacci"] = following


@pytest.mark.parametrize("ids", HOSTILE.values(), ids=HOSTILE)
def test_it_takes_milliseconds_whatever_the_sample(ids: list[int]) -> None:
    """1 to 2 ms; trying all periods one by one takes a second."""
    began = time.process_time()
    for _ in range(10):
        find_loop(ids)
    assert time.process_time() - began < 0.3
