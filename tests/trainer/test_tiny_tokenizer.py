"""The word-level tokenizer, alone and with the shipped format `mini`."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlt_client.formats import shipped_formats
from rlt_trainer.tiny import good_trace, make_tokenizer, problems
from rlt_trainer.tiny.documents import student_document, teacher_document
from rlt_trainer.tiny.tokenizer import VOCABULARY


def test_every_word_has_its_own_id() -> None:
    tokenizer = make_tokenizer()
    assert len(tokenizer) == len(set(VOCABULARY)) == 87
    assert [tokenizer(word)["input_ids"] for word in VOCABULARY] == [[i] for i in range(87)]


def test_round_trip() -> None:
    tokenizer = make_tokenizer()
    text = "Q 36 A +5 B *3 C +11 D +5 = 17 > 36 ~ ~ A +5 41 ! 17 # 17 $"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.split())
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix(" $")


def test_another_word_is_refused_and_never_replaced() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.unk_token is None
    for text in ("61", "+4", "a", "hello", "17#"):
        with pytest.raises(Exception, match="UNK"):  # what `tokenizers` raises has no class of its own
            tokenizer(text)


@pytest.mark.parametrize("name", ["tiny_base", "tiny_warmup"])
def test_a_model_folder_brings_the_same_tokenizer(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("$", "<pad>", None)
    assert tokenizer.chat_template is None
    assert tokenizer.model_max_length == 256


def test_the_format_mini_spells_the_training_texts() -> None:
    mini, tokenizer = shipped_formats()["mini"], make_tokenizer()
    for problem in problems(50, held_out=False):
        trace = good_trace(problem)
        values = {"question": problem.question, "answer": problem.answer}
        teacher = (mini.teacher.system + mini.teacher.user + mini.teacher.prefill).format(**values)
        student = (mini.student.system + mini.student.user + mini.student.open).format(**values)
        told = teacher + trace + mini.teacher.close
        thought = student + trace + mini.student.close + mini.student.answer.format(**values)
        assert tokenizer.convert_ids_to_tokens(tokenizer(told)["input_ids"]) == [
            *teacher_document(problem, trace).words[:-1]  # the close is the teacher's stop: `$` is never asked for
        ]
        assert tokenizer.convert_ids_to_tokens(tokenizer(thought)["input_ids"]) == [
            *student_document(problem, trace).words
        ]
