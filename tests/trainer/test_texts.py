"""What is learned of a row, to the token."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt_client.formats import FormatError
from rlt_client.prompts import TextCodec, Untokenizable
from rlt_trainer.config.sections import TextRole
from rlt_trainer.texts import NOT_LEARNED, Example, Text, Writer, named_format

QUESTION, ANSWER, EXPLANATION = "Q 36 A +5 B *3", "17", "36 A +5 41 B *3 17 "


@pytest.fixture(scope="module")
def writer(tiny_base: Path) -> Writer:
    return Writer(TextCodec.of_folder(tiny_base), named_format("mini", None))


def said(writer: Writer, ids: list[int]) -> str:
    return writer.codec.decode(ids)


def test_a_teacher_learns_the_explanation_its_end_and_nothing_else(writer: Writer) -> None:
    text = writer.text(TextRole.teacher, QUESTION, ANSWER, EXPLANATION)
    assert said(writer, text.prompt_ids) == f"{QUESTION} = {ANSWER} >"
    assert said(writer, text.completion_ids) == f"{EXPLANATION}# $"
    learned = [label for label in text.example.labels if label != NOT_LEARNED]
    assert learned == text.completion_ids
    assert text.example.labels[: len(text.prompt_ids)] == [NOT_LEARNED] * len(text.prompt_ids)


def test_a_student_learns_thoughts_and_answer_and_is_not_shown_the_answer(writer: Writer) -> None:
    text = writer.text(TextRole.student, QUESTION, ANSWER, EXPLANATION)
    assert said(writer, text.prompt_ids) == f"{QUESTION} >"
    assert said(writer, text.completion_ids) == f"{EXPLANATION}# {ANSWER} $"


def test_the_end_is_written_once(writer: Writer) -> None:
    ids = writer.text(TextRole.student, QUESTION, ANSWER, EXPLANATION).completion_ids
    assert ids.count(writer.codec.eos_token_id or 0) == 1


def test_what_the_prompt_holds_of_an_explanation_is_not_learned(tiny_base: Path) -> None:
    codec = TextCodec.of_folder(tiny_base)
    mini = named_format("mini", None)
    held = mini.model_copy(
        update={"teacher": mini.teacher.model_copy(update={"prefill": " = {answer} > 36", "held": "36"})}
    )
    writer = Writer(codec, held)
    full = writer.text(TextRole.teacher, QUESTION, ANSWER, EXPLANATION)
    rest = writer.text(TextRole.teacher, QUESTION, ANSWER, EXPLANATION.removeprefix("36"))
    assert said(writer, full.completion_ids) == "A +5 41 B *3 17 # $"
    assert full == rest


def test_a_cut_text_does_not_teach_to_end(writer: Writer) -> None:
    example = writer.text(TextRole.teacher, QUESTION, ANSWER, EXPLANATION).example
    short = example.cut(len(example) - 1)
    assert short.teaches
    assert writer.codec.eos_token_id not in short.labels
    assert not example.cut(3).teaches


def test_lengths_are_of_both_parts() -> None:
    assert len(Text([1, 2], [3])) == len(Text([1, 2], [3]).example) == 3
    assert len(Example([], [])) == 0


def test_a_word_that_the_vocabulary_lacks_is_refused(writer: Writer) -> None:
    with pytest.raises(Untokenizable):
        writer.text(TextRole.teacher, QUESTION, ANSWER, "because")


def test_an_unknown_format_is_named_with_those_that_there_are() -> None:
    with pytest.raises(FormatError, match=r"no format 'minni', but .*mini.*stratos"):
        named_format("minni", None)
