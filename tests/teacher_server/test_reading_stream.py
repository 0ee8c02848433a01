"""Text while it is being written: what a reader gets piece by piece joins to what is returned at the end."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlt_client.formats import Format, shipped_formats
from rlt_client.prompts import TextCodec, content, literal
from rlt_client.schemas.common import GenStatus
from rlt_teacher_server.reading import ExplanationText, read_sample
from rlt_trainer.tiny.tokenizer import make_tokenizer

FORMATS = shipped_formats()
LEARNT = ["the sum of the terms is even so the answer is four >\n\n .</ .<| in [END] é 日本"] * 8
SPECIALS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]


PLAIN = FORMATS["plain"]
ENDED_BY_A_WORD = PLAIN.model_copy(
    update={
        "name": "word",
        "teacher": PLAIN.teacher.model_copy(update={"prefill": "{answer}", "held": "", "close": "[END]"}),
    }
)
"""`▁` is put before a closing tag that is encoded on its own: this one does not mind."""


def codec_of(backend: Tokenizer, eos: str) -> TextCodec:
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos))  # type: ignore[no-untyped-call]  # untyped in transformers


def byte_level() -> TextCodec:
    """As Qwen's, Llama 3's, GPT's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        LEARNT, trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    return codec_of(backend, "<|im_end|>")


def byte_fallback() -> TextCodec:
    """As Llama 2's and Mistral's: `▁` for spaces, one token for each byte of what the vocabulary lacks."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *fallback])
    backend.train_from_iterator([text.replace("日本", "") for text in LEARNT], trainer)
    return codec_of(backend, "</s>")


def unigram() -> TextCodec:
    """As T5's: Metaspace, which treats the first word on its own."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["</s>", "<unk>"], unk_token="<unk>", initial_alphabet=alphabet
    )
    backend.train_from_iterator(LEARNT, trainer)
    return codec_of(backend, "</s>")


def word_piece() -> TextCodec:
    """As BERT's: the decoder puts the spaces and takes some away."""
    letters = [chr(c) for c in range(33, 127)]
    words = ["<unk>", "[X]", "the", "sum", "is", "##ly", "é", *letters, *(f"##{letter}" for letter in letters)]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken("[X]")])
    return codec_of(backend, "[X]")


CODECS = {
    "byte_level": byte_level(),
    "byte_fallback": byte_fallback(),
    "unigram": unigram(),
    "word_piece": word_piece(),
    "words": TextCodec(make_tokenizer()),
}


def pieces(codec: TextCodec, format: Format, ids: Sequence[int], cuts: Sequence[int]) -> list[str]:
    stream = ExplanationText(codec, format)
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    parts = [stream.feed(ids[left:right]) for left, right in pairwise(edges)]
    return [*parts, stream.end()]


def closing(codec: TextCodec, format: Format) -> list[int]:
    return codec.encode([literal(format.teacher.close)]).ids


CUTS = st.lists(st.integers(0, 400), max_size=30) | st.just(list(range(400)))


PAIRS = [
    pytest.param(codec, format, id=f"{name}-{format.name}")
    for name, codec in CODECS.items()
    for format in ([FORMATS["mini"]] if name == "words" else [*FORMATS.values(), ENDED_BY_A_WORD])
]


@pytest.mark.parametrize(("codec", "format"), PAIRS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), cuts=CUTS)
def test_pieces_join_to_the_text(codec: TextCodec, format: Format, data: Any, cuts: list[int]) -> None:
    """Of ids drawn at random: whole characters, bytes of characters, bytes of none, tags."""
    close = closing(codec, format)
    ids = data.draw(st.lists(st.integers(0, codec.vocab_size - 1), max_size=80))
    ids += close * data.draw(st.integers(0, 2))
    read = read_sample(codec, format, ids, "stop")
    joined = "".join(pieces(codec, format, ids, cuts))
    if read.gen_status is GenStatus.complete:
        assert joined == read.text
    else:  # a prefix: nothing that is not in it
        assert (format.teacher.held + codec.decode(ids)).startswith(joined)


TEXTS = st.lists(
    st.sampled_from(["the sum ", "日本", "🦊", "é", "\n\n", " ", "<|", "</", "\n[EN", "[END", "�", "<|end_of_", ">"])
    | st.text(max_size=6),
    max_size=30,
).map("".join)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize(
    "format", [FORMATS["stratos"], FORMATS["deepseek"], FORMATS["plain"]], ids=lambda one: one.name
)
@settings(max_examples=100, deadline=None)
@given(text=TEXTS, cuts=CUTS)
def test_pieces_join_to_the_text_that_was_meant(name: str, format: Format, text: str, cuts: list[int]) -> None:
    codec = CODECS[name]
    ids = codec.encode([content(text), literal(format.teacher.close)]).ids
    read = read_sample(codec, format, ids, "stop")
    if read.gen_status is GenStatus.complete:
        parts = pieces(codec, format, ids, cuts)
        assert "".join(parts) == read.text
        assert not any(tag in part for tag in (format.teacher.close, format.student.close.strip()) for part in parts)


def one_by_one(codec: TextCodec, format: Format, ids: Sequence[int]) -> list[str]:
    return pieces(codec, format, ids, range(len(ids)))


def test_a_character_comes_whole() -> None:
    codec, format = CODECS["byte_level"], FORMATS["deepseek"]
    ids = codec.encode([content("a🦊b日")]).ids
    shown = one_by_one(codec, format, ids)
    assert [part for part in shown if part] == ["\n", "a", "🦊", "b", "日"]


def test_a_tag_is_held_back_until_it_turns_out_to_be_none() -> None:
    codec, format = CODECS["byte_level"], FORMATS["deepseek"]
    ids = codec.encode([content("x </explan, not")]).ids
    shown = one_by_one(codec, format, ids)
    assert "".join(shown) == "\nx </explan, not"
    before, comma = "".join(shown).index("<"), next(part for part in shown if "," in part)
    assert before == 3
    assert comma.startswith("</explan,")


def test_nothing_is_shown_from_a_tag_on() -> None:
    codec, format = CODECS["byte_level"], FORMATS["stratos"]
    for tag in ("<|end_of_explanation|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|im_end|>"):
        ids = codec.encode([content(f"so it is {tag} and more<|end_of_explanation|>")]).ids
        assert "".join(one_by_one(codec, format, ids)) == "\n\nso it is "


@pytest.mark.parametrize("end", ["<|im_end|>", "<|end_of_exp", "<|begin"])
def test_what_a_sample_was_cut_off_in_is_not_shown(end: str) -> None:
    codec, format = CODECS["byte_level"], FORMATS["stratos"]
    ids = codec.encode([content("so it is "), literal(end)]).ids
    assert "".join(one_by_one(codec, format, ids)) == "\n\nso it is "


def test_the_end_of_turn_of_the_tiny_model_is_not_shown() -> None:
    codec, mini = CODECS["words"], FORMATS["mini"]
    ids = codec.encode([content("36 A +5 $")]).ids
    assert one_by_one(codec, mini, ids) == ["", "36", " A", " +5", "", ""]


def test_an_empty_explanation_is_its_held_part() -> None:
    codec, format = CODECS["byte_level"], FORMATS["stratos"]
    assert "".join(one_by_one(codec, format, closing(codec, format))) == "\n\n"
    assert read_sample(codec, format, closing(codec, format), "stop").text == "\n\n"


def test_one_wrong_byte_makes_a_run_of_byte_tokens_unreadable() -> None:
    """The decoder reads a run as a whole, so that what was right before the wrong byte is not shown either."""
    codec, format = CODECS["byte_fallback"], ENDED_BY_A_WORD
    token = codec.tokenizer.convert_tokens_to_ids
    run = [token(f"<0x{byte:02X}>") for byte in "日".encode()]
    ids = [*codec.encode([content("the sum")]).ids, *run, run[0], *codec.encode([content("[END]")]).ids]
    read = read_sample(codec, format, ids, "stop")
    assert read.text == "the sum���� "
    assert "".join(one_by_one(codec, format, ids)) == read.text


def test_the_cost_of_a_token_does_not_grow() -> None:
    """16,000 tokens one by one: the second half takes as long as the first, within the noise of a busy machine."""
    codec, format = CODECS["byte_level"], FORMATS["stratos"]
    drawn = random.Random(0)
    ids = [drawn.randrange(10, codec.vocab_size) for _ in range(16_000)]
    stream, spent = ExplanationText(codec, format), []
    for half in (ids[:8000], ids[8000:]):
        began = time.process_time()
        for token in half:
            stream.feed([token])
        spent.append(time.process_time() - began)
    assert spent[1] < 3 * spent[0]
    assert sum(spent) < 5  # decoding all of it each time takes minutes


@pytest.mark.parametrize("text", ["�", "\n"])
def test_text_that_is_always_held_back_costs_no_more(text: str) -> None:
    codec, format = CODECS["byte_level"], FORMATS["plain"]
    half = codec.encode([content("é")]).ids[:1] if text == "�" else codec.encode([content(text)]).ids
    stream = ExplanationText(codec, format)
    began = time.process_time()
    shown = "".join(stream.feed(half) for _ in range(8000))
    assert time.process_time() - began < 4
    assert len(shown) >= 7990
