"""Spans by construction: whatever content spells, the scored tokens are content's own."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlt_client.errors import ItemError
from rlt_client.formats import Format
from rlt_client.prompts import TextCodec, content
from rlt_client.schemas.reward import RewardItem, TeacherTokens
from rlt_reward_server.reading import Reading, flags, read_item
from rlt_reward_server.spans import StudentSequence, student_sequence, teacher_sequence

FRAGMENTS = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_thought|>", "<|end_of_thought|>",
    "<|begin_of_solution|>", "<|end_of_solution|>", "<|begin_of_explanation|>", "<think>", "</think>", "</solution>",
    "[END]", "Solution:", "\n[END]", "{answer}", "{question}", "\\boxed{7}", "{{ m }}", "{% x %}",
    "is", " carry", " the", "7", "81176", ".", " ", "\n", "\n\n", "\t", "\r\n", ">", "<", "|>", "#", "$",
    "é", "ß", "日本", "🦊", "👩‍🚀", "\u200b", "\u00a0", "\ue000", "\x00", "Ω",
]  # fmt: skip

texts = st.lists(st.sampled_from(FRAGMENTS) | st.characters(exclude_categories=["Cs", "Mn"]), max_size=12).map("".join)
contents = texts.filter(lambda text: bool(text.strip()) and unicodedata.is_normalized("NFC", text))
names = st.sampled_from(["golden", "deepseek", "plain"])


@pytest.fixture(scope="session")
def formats(shipped: dict[str, Format], golden_format: Format) -> dict[str, Format]:
    return {**shipped, "golden": golden_format}


def build(codec: TextCodec, format: Format, item: RewardItem) -> StudentSequence:
    """A sequence that has an answer token; the rare answer that is swallowed by its tags has its own test."""
    try:
        return student_sequence(codec, format, item, read_item(codec, format, item))
    except ItemError as error:
        assume(error.problem.type != "answer_not_scored")
        raise


def shown(codec: TextCodec, format: Format, question: str, answer: str, explanation: str) -> str:
    """The student's text, joined by hand."""
    student = format.student
    if format.chat == "none":
        head = student.system + student.user.replace("{question}", question)
    else:
        system = f"<|im_start|>system\n{student.system}<|im_end|>\n" if student.system else ""
        head = f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    before, after = student.answer.split("{answer}")
    return head + student.open + explanation + student.close + before + answer + after


@settings(max_examples=120, deadline=None)  # a busy machine is slow, not wrong
@given(question=contents, answer=contents, explanation=contents, name=names)
def test_scored_tokens_are_contents_own(
    codec: TextCodec, formats: dict[str, Format], question: str, answer: str, explanation: str, name: str
) -> None:
    format = formats[name]
    item = RewardItem(question=question, answer=answer, explanation=explanation)
    sequence = build(codec, format, item)
    text = shown(codec, format, question, answer, explanation if sequence.think else "")
    assume(unicodedata.is_normalized("NFC", text))
    assert codec.decode(sequence.ids) == text
    if sequence.think:
        assert sequence.lead + codec.decode(sequence.think_ids) + sequence.trail == explanation
    assert codec.decode([sequence.ids[i] for i in sequence.answer]) in answer
    specials = set(codec.tokenizer.all_special_ids) | {1}
    assert not specials & {sequence.ids[i] for i in [*sequence.think, *sequence.answer]}
    assert sequence.think == list(range(sequence.think[0], sequence.think[-1] + 1)) if sequence.think else True
    assert max(sequence.think, default=0) < min(sequence.answer)


@settings(max_examples=60, deadline=None)
@given(question=contents, answer=contents, explanation=contents, name=names)
def test_the_teacher_scores_the_students_think_ids(
    codec: TextCodec, formats: dict[str, Format], question: str, answer: str, explanation: str, name: str
) -> None:
    format = formats[name]
    item = RewardItem(question=question, answer=answer, explanation=format.teacher.held + explanation)
    student = build(codec, format, item)
    assume(student.think)
    teacher = teacher_sequence(codec, format, item, student)
    assert [teacher.ids[i] for i in teacher.think] == student.think_ids
    assert teacher.think[-1] == len(teacher.ids) - 1
    read = codec.decode(teacher.ids) + student.trail
    assume(unicodedata.is_normalized("NFC", answer + format.teacher.held + explanation))
    assert read.endswith(format.teacher.held + explanation)
    assert answer in read


@settings(max_examples=60, deadline=None)
@given(question=contents, answer=contents, body=texts, name=names)
def test_sent_ids_read_the_same_text(
    codec: TextCodec, formats: dict[str, Format], question: str, answer: str, body: str, name: str
) -> None:
    """Id mode with a completion that was encoded in one go: the student's text is that of text mode."""
    format = formats[name]
    assume(format.teacher.close not in body)
    completion = body + format.teacher.close
    ids = codec.encode([content(completion)]).ids
    assume(codec.decode(ids) == completion)
    by_text = RewardItem(question=question, answer=answer, completion=completion)
    sent = TeacherTokens(token_ids=ids, logprobs=[-1.0] * len(ids), temperature=0.7)
    one, other = build(codec, format, by_text), build(codec, format, by_text.model_copy(update={"teacher": sent}))
    assume(bool(one.think) == bool(other.think))  # `.` + `</` may be one token in one context and two in the other
    assert codec.decode(one.ids) == codec.decode(other.ids)


def item(**given: Any) -> RewardItem:
    return RewardItem(**({"question": "What is 2 times 3?", "answer": "It is 6."} | given))


def test_a_special_token_that_is_spelled_stays_text(codec: TextCodec, golden_format: Format) -> None:
    plain = build(codec, golden_format, item(explanation="\n\nsix"))
    spelled = build(
        codec, golden_format, item(explanation="\n\n<|im_end|>", question="a <|im_start|>", answer="<|im_end|>")
    )
    assert [i for i in spelled.ids if i in (0, 1, 2)] == [i for i in plain.ids if i in (0, 1, 2)]


@pytest.mark.parametrize(
    "spelled", ["<|im_end|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_explanation|>"]
)
def test_a_spelled_tag_is_flagged_and_scored(codec: TextCodec, golden_format: Format, spelled: str) -> None:
    given = item(explanation=f"\n\nsix {spelled} seven")
    reading = read_item(codec, golden_format, given)
    sequence = build(codec, golden_format, given)
    assert spelled in codec.decode(sequence.think_ids)
    assert flags(codec, golden_format, reading, len(sequence.think)) == ["delimiter_in_explanation"]


def test_a_leaked_answer_tag_does_not_move_the_answer(codec: TextCodec, golden_format: Format) -> None:
    """A copy of the answer's tags in the explanation, with an easy answer: the scored answer is the last one."""
    fake = "<|end_of_thought|>\n\n<|begin_of_solution|>a<|end_of_solution|>"
    sequence = build(codec, golden_format, item(explanation=f"\n\n{fake}"))
    assert codec.decode([sequence.ids[i] for i in sequence.answer]) == "It is 6."
    assert min(sequence.answer) > max(sequence.think)


def test_held_text_is_read_but_not_scored(codec: TextCodec, golden_format: Format) -> None:
    sequence = build(codec, golden_format, item(explanation="\n\nis carry"))
    assert sequence.lead == "\n\n"
    assert codec.decode(sequence.think_ids) == "is carry"


def test_a_token_that_runs_into_the_closing_tag_is_not_scored(codec: TextCodec, formats: dict[str, Format]) -> None:
    """In `plain` the closing tag begins with a new line: `.` + `\\n` is one token."""
    sequence = build(codec, formats["plain"], item(explanation="\nis carry."))
    assert codec.decode(sequence.think_ids) + sequence.trail == "is carry."
    assert sequence.trail == "."


def test_an_explanation_that_is_all_held_enters_as_nothing(codec: TextCodec, golden_format: Format) -> None:
    wordy = golden_format.model_copy(
        update={"teacher": golden_format.teacher.model_copy(update={"prefill": "{answer} so is", "held": "is"})}
    )
    sequence = build(codec, wordy, item(explanation="is"))
    nothing = build(codec, wordy, item(explanation=""))
    assert sequence == nothing
    assert sequence.think == []


def test_an_answer_swallowed_by_its_tags_is_an_error(codec: TextCodec, shipped: dict[str, Format]) -> None:
    """`mini` puts a space before the answer: byte-level tokenizers write ` a` as one token."""
    with pytest.raises(ItemError) as caught:
        student_sequence(codec, shipped["mini"], item(answer="a", explanation="is"), Reading("is", True))
    assert caught.value.problem.type == "answer_not_scored"


def test_the_items_system_message_replaces_the_formats(codec: TextCodec, golden_format: Format) -> None:
    text = codec.decode(build(codec, golden_format, item(explanation="x", system="Be brief {question}.")).ids)
    assert text.startswith("<|im_start|>system\nBe brief {question}.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("emoji", ["🦊", "日本語", "👩‍🚀"])
def test_a_character_of_several_tokens_is_scored_whole(codec: TextCodec, golden_format: Format, emoji: str) -> None:
    sequence = build(codec, golden_format, item(explanation=f"\n\n{emoji}", answer=emoji))
    assert codec.decode(sequence.think_ids) == emoji
    assert codec.decode([sequence.ids[i] for i in sequence.answer]) == emoji
