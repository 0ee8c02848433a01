"""From an item to the token sequences that are scored, with the positions of think and answer tokens.

Positions are known by construction and never searched for in encoded text. A token that straddles a tag and content
belongs to the tag. The teacher scores the *student's* think ids, so that both sides compare the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlt_client.formats import Format
from rlt_client.prompts import (
    Encoded,
    Piece,
    TextCodec,
    Untokenizable,
    content,
    fill,
    literal,
    student_prompt,
    teacher_prompt,
)
from rlt_client.schemas.reward import RewardItem
from rlt_reward_server.errors import Reason, item_error
from rlt_reward_server.reading import Reading, shown

__all__ = ["StudentSequence", "TeacherSequence", "student_sequence", "teacher_sequence"]


@dataclass(frozen=True, slots=True)
class StudentSequence:
    """Prompt, explanation and answer as the student reads them."""

    ids: list[int]
    """Shape [T]."""
    think: list[int]
    """Positions in `ids` of the scored think tokens, ascending; empty where the explanation enters as nothing."""
    answer: list[int]
    """Positions in `ids` of the scored answer tokens, ascending."""
    lead: str = ""
    """What stands of the explanation before its first scored token."""
    trail: str = ""
    """What stands of it after the last one: the part of a token that runs into the closing tag."""

    @property
    def think_ids(self) -> list[int]:
        return [self.ids[position] for position in self.think]


@dataclass(frozen=True, slots=True)
class TeacherSequence:
    """The teacher's prompt and the student's think ids."""

    ids: list[int]
    think: list[int]


def student_sequence(codec: TextCodec, format: Format, item: RewardItem, reading: Reading) -> StudentSequence:
    """What the student is scored on. An explanation without one scored token enters as nothing at all.

    Raises:
        ItemError: untokenizable, answer_not_scored.
    """
    try:
        sequence = None if reading.blank else _with_explanation(codec, format, item, reading)
        if sequence is None or not sequence.think:
            sequence = _in_one_go(codec, format, item, "")
    except Untokenizable as error:
        raise item_error(Reason.untokenizable, str(error)) from error
    if not sequence.answer:
        raise item_error(Reason.answer_not_scored, f"every token of {shown(item.answer)} runs into a tag")
    return sequence


def _with_explanation(codec: TextCodec, format: Format, item: RewardItem, reading: Reading) -> StudentSequence:
    if reading.ids is None:
        return _in_one_go(codec, format, item, reading.text)
    return _around_ids(codec, format, item, reading.ids, reading.straddling)


def _in_one_go(codec: TextCodec, format: Format, item: RewardItem, text: str) -> StudentSequence:
    """Text mode: the whole text is encoded at once."""
    head = student_prompt(codec, format, item.question, item.system)
    encoded = codec.encode([*head, content(text, "think"), *_tail(format, item)])
    start, end = encoded.spans["think"]
    held = len(format.teacher.held) if text.startswith(format.teacher.held) else 0
    think = encoded.inside(start + held, end) if text else []
    if not think:
        return StudentSequence(encoded.ids, [], _answer(encoded))
    lead, trail = text[: encoded.starts[think[0]] - start], text[encoded.ends[think[-1]] - start :]
    return StudentSequence(encoded.ids, think, _answer(encoded), lead, trail)


def _around_ids(codec: TextCodec, format: Format, item: RewardItem, ids: list[int], straddling: str) -> StudentSequence:
    """Id mode: the sent ids stand in the student's text as they were sampled."""
    held = format.teacher.held
    head = codec.encode([*student_prompt(codec, format, item.question, item.system), content(held)]).ids
    tail = codec.encode([content(straddling), *_tail(format, item)])
    before = len(head) + len(ids)
    answer = [before + position for position in _answer(tail)]
    return StudentSequence([*head, *ids, *tail.ids], list(range(len(head), before)), answer, held, straddling)


def _tail(format: Format, item: RewardItem) -> list[Piece]:
    return [literal(format.student.close), *fill(format.student.answer, answer=item.answer)]


def _answer(encoded: Encoded) -> list[int]:
    return encoded.inside(*encoded.spans["answer"])


def teacher_sequence(codec: TextCodec, format: Format, item: RewardItem, student: StudentSequence) -> TeacherSequence:
    """What a hosted teacher is scored on: its prompt up to the first scored think token, then the student's think ids.

    Raises:
        ItemError: untokenizable.
    """
    prompt = teacher_prompt(codec, format, item.question, item.answer, held=False)
    try:
        head = codec.encode([*prompt, content(student.lead)]).ids
    except Untokenizable as error:
        raise item_error(Reason.untokenizable, str(error)) from error
    think = student.think_ids
    return TeacherSequence([*head, *think], list(range(len(head), len(head) + len(think))))
