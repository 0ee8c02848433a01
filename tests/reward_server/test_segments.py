"""KL across tokenizers: the finest segments that both share, whatever their tokens cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlt_client.errors import ItemError
from rlt_client.formats import Format
from rlt_client.prompts import TextCodec
from rlt_client.schemas.reward import RewardItem, TeacherTokens
from rlt_reward_server.reading import read_item
from rlt_reward_server.segments import Segment, Side, common_segments, one_by_one, refinement, sent_edges
from rlt_reward_server.spans import own_teacher_sequence, student_sequence

CORPUS = ["Each square has four sides, so I multiply three by four.", "sechs mal sieben ist viel 🦊🦊 日本", "é ß"]
OTHER = ["is carry the 7, and then ones; tens: 81176", "\\boxed{7} so it is seven times eleven."] * 3
TEXTS = [
    "\n\nEach square has four sides, so it is 12.",
    "\n\n日本 🦊 and 👩‍🚀 is  carry the\tseven\n\nsides",
    "\n\né",
    "\n\n 7 + 7\r\n= 14 … so…",
]


def tokenizer_of(backend: Tokenizer) -> TextCodec:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]  # in transformers
    return TextCodec(tokenizer)


def byte_level(corpus: list[str], size: int) -> TextCodec:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    return tokenizer_of(backend)


def metaspace(corpus: list[str], size: int) -> TextCodec:
    """As Llama's first tokenizers are: spaces as ▁, bytes for what has no token."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    backend.train_from_iterator([text.replace(" ", "▁") for text in corpus], trainer)
    return tokenizer_of(backend)


def words() -> TextCodec:
    """Loses white space."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "so": 1, "it": 2, "is": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer_of(backend)


CODECS: dict[str, Callable[[], TextCodec]] = {
    "small": lambda: byte_level(CORPUS, 300),
    "large": lambda: byte_level(CORPUS + OTHER, 420),
    "other": lambda: byte_level(OTHER, 380),
    "metaspace": lambda: metaspace(CORPUS + OTHER, 380),
}
PAIRS = [(one, other) for one in CODECS for other in CODECS]


@pytest.fixture(scope="module")
def codecs() -> dict[str, TextCodec]:
    return {name: make() for name, make in CODECS.items()}


@pytest.fixture(scope="module")
def format(shipped: dict[str, Format]) -> Format:
    """Stratos for models without a chat template."""
    return shipped["stratos"].model_copy(update={"chat": "none"})


def item(text: str, **given: Any) -> RewardItem:
    return RewardItem(**({"question": "What is 3 times 4?", "answer": "12 🦊", "explanation": text} | given))


def student_side(codec: TextCodec, format: Format, text: str) -> Side:
    given = item(text)
    sequence = student_sequence(codec, format, given, read_item(codec, format, given))
    return Side(codec, sequence.ids, sequence.think, sequence.edges)


def teacher_side(codec: TextCodec, format: Format, text: str) -> Side:
    sequence = own_teacher_sequence(codec, format, item(text), text)
    return Side(codec, sequence.ids, sequence.think, sequence.edges)


def sent_side(codec: TextCodec, format: Format, text: str) -> Side:
    """The text after the held part, encoded by itself, as an engine samples it."""
    ids = codec.tokenizer(text.removeprefix(format.teacher.held) + format.teacher.close, add_special_tokens=False)
    teacher = TeacherTokens(token_ids=ids.input_ids, logprobs=[-1.0] * len(ids.input_ids), temperature=0.7)
    written = read_item(codec, format, item(text, explanation=None, teacher=teacher))
    assert written.text == text
    assert written.ids is not None
    return Side(codec, written.ids, range(len(written.ids)), sent_edges(codec, written, format.teacher.held))


def read(side: Side, rows: slice) -> bytes:
    """The bytes of these think tokens, spelled by the vocabulary itself: nothing of the code under test."""
    spelled = side.codec.tokenizer.convert_ids_to_tokens([side.ids[position] for position in side.think[rows]])
    if not _byte_fallback(side.codec):
        alphabet = _byte_of()
        return bytes(alphabet[character] for token in spelled for character in token)
    parts = [bytes([int(t[3:5], 16)]) if t.startswith("<0x") else t.replace("▁", " ").encode() for t in spelled]
    return b"".join(parts)


@cache
def _byte_fallback(codec: TextCodec) -> bool:
    return "<0x41>" in codec.tokenizer.get_vocab()


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's spelling of bytes: the printable ones as they are, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def bytes_at(side: Side, text: str) -> set[int]:
    """Every place between tokens, counted from the vocabulary's spelling."""
    before = len(text.encode()) - len(read(side, slice(0, None)))
    places, at = {before}, before
    for row in range(len(side.think)):
        at += len(read(side, slice(row, row + 1)))
        places.add(at)
    return places


# The refinement itself


def edges_of(cuts: set[int], length: int) -> list[int | None]:
    return [0, *sorted(cuts), length]


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), *[st.sets(st.integers(1, max(1, n - 1)))] * 2)))
def test_the_refinement_is_the_finest(case: tuple[int, set[int], set[int]]) -> None:
    """Against brute force: a place is a boundary exactly if a token ends there on both sides."""
    length, one, other = case[0], {c for c in case[1] if c < case[0]}, {c for c in case[2] if c < case[0]}
    student, teacher = edges_of(one, length), edges_of(other, length)
    found = refinement(student, teacher)
    wanted = [place for place in range(length + 1) if place in student and place in teacher]
    assert [(student[s.student.start], student[s.student.stop]) for s in found] == list(pairwise(wanted))
    assert [(teacher[s.teacher.start], teacher[s.teacher.stop]) for s in found] == list(pairwise(wanted))


@given(st.sets(st.integers(1, 30)))
def test_identical_sides_are_compared_token_by_token(cuts: set[int]) -> None:
    edges = edges_of(cuts, 31)
    assert refinement(edges, edges) == one_by_one(len(edges) - 1)


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"),
    [
        ([0, 2, 5], [0, 3, 5], [((0, 2), (0, 2))]),
        ([0, None, 4, 6], [0, 2, 4, 6], [((0, 2), (0, 2)), ((2, 3), (2, 3))]),
        ([2, 4, 6], [0, 4, 6], [((1, 2), (1, 2))]),  # the first token of each stands in no segment
        ([0, 2, 4], [0, 2, 3], [((0, 1), (0, 1))]),
        ([0, 0, 3, 3], [0, 3], [((0, 3), (0, 1))]),  # tokens without text are counted where they stand
        ([0, 2, 2, 3], [0, 2, 3], [((0, 2), (0, 1)), ((2, 3), (1, 2))]),
        ([0, 3], [1, 2], []),
        ([0, 3], [], []),
        ([None, None], [0, 3], []),
    ],
)
def test_refinements(student: list[int | None], teacher: list[int | None], wanted: list[Any]) -> None:
    assert refinement(student, teacher) == [Segment(slice(*one), slice(*other)) for one, other in wanted]


# Real tokenizers


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("teacher_of", [teacher_side, sent_side])
def test_segments_of_two_tokenizers(
    codecs: dict[str, TextCodec],
    format: Format,
    one: str,
    other: str,
    text: str,
    teacher_of: Callable[[TextCodec, Format, str], Side],
) -> None:
    student, teacher = student_side(codecs[one], format, text), teacher_of(codecs[other], format, text)
    found = common_segments(text, student, teacher)
    for segment in found:
        assert read(student, segment.student) == read(teacher, segment.teacher) != b""
    # all of the text after the held part, and no place at which both could have been cut is left out
    assert b"".join(read(student, segment.student) for segment in found) == text.removeprefix("\n\n").encode()
    shared = bytes_at(student, text) & bytes_at(teacher, text)
    assert len(found) == len(shared) - 1


ANY = st.characters(exclude_categories=["Cs"], exclude_characters="▁")  # which is a space to one of the tokenizers


@settings(max_examples=60, deadline=None)  # a busy machine is slow, not wrong
@given(
    text=st.text(st.sampled_from("aes7 \n\t,.é日🦊\u200d…ßΩ") | ANY, min_size=1),
    pair=st.sampled_from(PAIRS),
    teacher_of=st.sampled_from([teacher_side, sent_side]),
)
def test_segments_of_any_text(
    codecs: dict[str, TextCodec],
    format: Format,
    text: str,
    pair: tuple[str, str],
    teacher_of: Callable[[TextCodec, Format, str], Side],
) -> None:
    text = "\n\n" + text + "."
    student, teacher = student_side(codecs[pair[0]], format, text), teacher_of(codecs[pair[1]], format, text)
    found = common_segments(text, student, teacher)
    assert b"".join(read(student, segment.student) for segment in found) == text.removeprefix("\n\n").encode()
    for segment in found:
        assert read(student, segment.student) == read(teacher, segment.teacher)
    assert len(found) == len(bytes_at(student, text) & bytes_at(teacher, text)) - 1


def test_one_tokenizer_twice_is_compared_token_by_token(codecs: dict[str, TextCodec], format: Format) -> None:
    for codec in codecs.values():
        for text in TEXTS:
            student, teacher = student_side(codec, format, text), teacher_side(codec, format, text)
            assert common_segments(text, student, teacher) == one_by_one(len(student.think))


def test_a_tokenizer_that_loses_white_space_is_refused(codecs: dict[str, TextCodec], format: Format) -> None:
    teacher = words()
    encoded = teacher.tokenizer("so  it is", add_special_tokens=False).input_ids
    lossy = Side(teacher, encoded, range(3), [2, 6, 9, 11])
    with pytest.raises(ItemError) as caught:
        common_segments("\n\nso  it is", student_side(codecs["small"], format, "\n\nso  it is"), lossy)
    assert caught.value.problem.type == "no_common_segments"
    assert "'so  it is'" in (caught.value.problem.detail or "")


def test_no_common_boundary_is_an_error(codecs: dict[str, TextCodec], format: Format) -> None:
    student = student_side(codecs["small"], format, TEXTS[0])
    with pytest.raises(ItemError) as caught:
        common_segments(TEXTS[0], student, Side(codecs["small"], student.ids, [], []))
    assert caught.value.problem.type == "no_common_segments"


def test_bytes_that_are_no_text_end_in_the_last_segment(codecs: dict[str, TextCodec], format: Format) -> None:
    """A completion cut off inside a character: its bytes read as U+FFFD, which the student reads too."""
    codec = codecs["small"]
    [fox, *_] = codec.tokenizer("🦊", add_special_tokens=False).input_ids
    ids = [*codec.tokenizer("so it is ", add_special_tokens=False).input_ids, fox]
    if codec.decode([fox]) == "🦊":
        ids[-1:] = [codec.tokenizer.convert_tokens_to_ids("ð")]
    teacher = TeacherTokens(token_ids=ids, logprobs=[-1.0] * len(ids), temperature=0.7)
    written = read_item(codec, format, item("", explanation=None, teacher=teacher))
    assert (written.text, written.closed) == ("\n\nso it is \ufffd", False)
    side = Side(codec, ids, range(len(ids)), sent_edges(codec, written, format.teacher.held))
    found = common_segments(written.text, student_side(codecs["large"], format, written.text), side)
    assert found[-1].teacher.stop == len(ids)
