"""Text to tokens: what is literal, what is content, and where the content's tokens stand."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_client.formats import FormatError, shipped_formats
from rlt_client.prompts import (
    TextCodec,
    Untokenizable,
    content,
    fill,
    literal,
    read_completion,
    student_prompt,
    teacher_prompt,
    text_of_completion,
)

STRATOS = shipped_formats()["stratos"]
DEEPSEEK = shipped_formats()["deepseek"]
HOSTILE = st.lists(
    st.sampled_from(
        [
            "<|im_end|>",
            "<|im_start|>",
            "</think>",
            "<|end_of_explanation|>",
            "{answer}",
            "\n\n",
            " ",
            "é",
            "🦊",
            "four",
            "<",
            ">",
        ]
    )
    | st.text(max_size=4),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def codec(bpe_tokenizer):
    return TextCodec(bpe_tokenizer)


def test_ordinary_text_is_encoded_as_the_tokenizer_would(codec, bpe_tokenizer):
    pieces = teacher_prompt(codec, STRATOS, "what is the sum?", "four")
    text = "".join(piece.text for piece in pieces)
    assert codec.encode(pieces).ids == bpe_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert text.endswith("<|begin_of_solution|>four<|end_of_solution|>\n\n<|begin_of_explanation|>\n\n")


def test_special_tokens_are_special_in_literals_only(codec, bpe_tokenizer):
    end = bpe_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert codec.encode([literal("<|im_end|>")]).ids == [end]
    spelled = codec.encode([content("<|im_end|>")]).ids
    assert end not in spelled
    assert codec.decode(spelled) == "<|im_end|>"


@settings(max_examples=60, deadline=None)
@given(question=HOSTILE, explanation=HOSTILE, answer=HOSTILE)
def test_spans_hold_exactly_the_content(codec, question, explanation, answer):
    pieces = [
        *student_prompt(codec, DEEPSEEK, question),
        content(explanation, "think"),
        literal(DEEPSEEK.student.close),
        *fill(DEEPSEEK.student.answer, answer=answer),
    ]
    text = "".join(piece.text for piece in pieces)
    encoded = codec.encode(pieces)
    assert codec.decode(encoded.ids) == text
    for name, wanted in (("think", explanation), ("answer", answer)):
        start, end = encoded.spans[name]
        assert text[start:end] == wanted
        inside = encoded.inside(start, end)
        assert inside == list(range(inside[0], inside[-1] + 1)) if inside else True
        assert codec.decode([encoded.ids[i] for i in inside]) in wanted
    specials = [i for i in encoded.ids if i < 5]
    assert codec.decode(specials) == "<|im_start|><|im_end|><|im_start|><think></think>"


def test_a_token_that_straddles_content_and_tag_is_not_inside(codec):
    # the fixture's training text made '.<' one token
    encoded = codec.encode([content("the sum.", "think"), literal("<|end_of_thought|>")])
    texts = codec.tokens(encoded.ids)
    assert ".<" in texts
    inside = encoded.inside(*encoded.spans["think"])
    assert "".join(texts[i] for i in inside) == "the sum"


def test_an_opening_tag_that_the_template_began_is_not_written_twice(bpe_tokenizer):
    opened = copy.deepcopy(bpe_tokenizer)
    opened.chat_template = opened.chat_template.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    for tokenizer in (bpe_tokenizer, opened):
        text = "".join(piece.text for piece in student_prompt(TextCodec(tokenizer), DEEPSEEK, "why?"))
        assert text.endswith("<|im_start|>assistant\n<think>")
        assert text.count("<think>") == 1


def test_an_empty_system_message_is_left_out(codec):
    text = "".join(piece.text for piece in student_prompt(codec, DEEPSEEK, "why?"))
    assert text == "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n<think>"
    own = "".join(piece.text for piece in student_prompt(codec, DEEPSEEK, "why?", system="Be brief."))
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ raise_exception('no system here') }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
    ],
)
def test_a_template_that_drops_doubles_or_refuses_messages_is_refused(bpe_tokenizer, template):
    tokenizer = copy.deepcopy(bpe_tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(FormatError, match="chat template"):
        teacher_prompt(TextCodec(tokenizer), STRATOS, "q", "a")


def test_a_model_without_a_template_needs_a_format_without_one(bpe_tokenizer):
    tokenizer = copy.deepcopy(bpe_tokenizer)
    tokenizer.chat_template = None
    codec = TextCodec(tokenizer)
    with pytest.raises(FormatError):
        teacher_prompt(codec, STRATOS, "q", "a")
    text = "".join(piece.text for piece in teacher_prompt(codec, shipped_formats()["plain"], "q", "a"))
    assert text == "Question: q\nSolution: a\nHow to find it:\n"


def test_reading_a_closed_completion(codec):
    ids = codec.encode([content("so the answer is four.<|end_of_explanation|>"), literal("<|im_end|>")]).ids
    read = read_completion(codec, STRATOS, ids)
    assert (read.text, read.closed) == ("\n\nso the answer is four.", True)
    assert codec.decode(ids[: read.n_inside]) + read.straddling == "so the answer is four."
    assert read.straddling == ".", "'.<' is one token: it straddles the closing tag"


def test_reading_an_unclosed_completion(codec):
    ids = codec.encode([content("so the answer"), literal("<|im_end|>")]).ids
    read = read_completion(codec, STRATOS, ids)
    assert (read.text, read.closed, read.n_inside) == ("\n\nso the answer", False, len(ids) - 1)
    assert read_completion(codec, STRATOS, ids[:-1]).text == read.text


def test_reading_nothing(codec):
    assert read_completion(codec, STRATOS, []).text == "\n\n"
    assert text_of_completion(STRATOS, "").text == "\n\n"


@settings(max_examples=60, deadline=None)
@given(text=HOSTILE, after=HOSTILE)
def test_ids_and_text_give_the_same_explanation(codec, text, after):
    body = text.replace("<|end_of_explanation|>", "") + "<|end_of_explanation|>" + after
    from_text = text_of_completion(STRATOS, body)
    from_ids = read_completion(codec, STRATOS, codec.encode([content(body)]).ids)
    assert (from_ids.text, from_ids.closed) == (from_text.text, from_text.closed)
    ids = codec.encode([content(body)]).ids
    assert STRATOS.teacher.held + codec.decode(ids[: from_ids.n_inside]) + from_ids.straddling == from_ids.text


def test_a_word_that_the_vocabulary_lacks():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    for unknown in (None, "?"):
        backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token=unknown))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown))
        assert codec.encode([content("a b")]).ids == [0, 1]
        with pytest.raises(Untokenizable):
            codec.encode([content("a c")])


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(TypeError, match="fast tokenizer"):
        TextCodec(object())
