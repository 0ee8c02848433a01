"""What an item carries, taken apart and checked: the explanation, the ids and log-probs sent along, its flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rlt_client.formats import Format
from rlt_client.prompts import TextCodec, Untokenizable, content, read_completion, text_of_completion
from rlt_client.schemas.reward import RewardItem, TeacherTokens
from rlt_reward_server.errors import Reason, item_error

__all__ = ["Reading", "flags", "keeps_white_space", "read_item", "shown", "usable_logprobs"]

TEMPERATURE_TOLERANCE: Final = 1e-6  # 0.7 that has been through a float32 is still 0.7
LOWEST: Final = -1e6  # a sampled token is never this unlikely; false for NaN and −inf too
HIGHEST: Final = 1e-2  # rounding of half precision can bring a certain token's log-prob just above 0


@dataclass(frozen=True, slots=True)
class Reading:
    """The explanation of one item. Where ids were sent, they stand for its text."""

    text: str
    """Everything between the teacher's tags, the held part included."""
    closed: bool
    """False only where a completion lacks the closing tag: an `explanation` has no format term."""
    ids: list[int] | None = None
    """The sent ids that lie wholly inside `text`, after the held part."""
    straddling: str = ""
    """What the token after those holds of `text`."""

    @property
    def blank(self) -> bool:
        return not self.text.strip()


def read_item(codec: TextCodec, format: Format, item: RewardItem) -> Reading:
    """Take the explanation out of whatever the item carries.

    Raises:
        ItemError: empty_question, empty_answer, teacher_logprobs_unusable.
    """
    if not item.question.strip():
        raise item_error(Reason.empty_question)
    if not item.answer.strip():
        raise item_error(Reason.empty_answer)
    given = _of_text(codec, format, item)
    if item.teacher is None:
        assert given is not None  # the schema asks for a text where no ids come
        return given
    sent = _of_ids(codec, format, item.teacher)
    if given is None:
        return sent
    if item.explanation is not None:
        sent = Reading(sent.text, True, sent.ids, sent.straddling)
    if sent.closed != given.closed or not _same_text(codec, sent.text, given.text):
        detail = f"the ids read {shown(sent.text)}, the text {shown(given.text)}"
        raise item_error(Reason.teacher_logprobs_unusable, detail)
    return sent


def _of_text(codec: TextCodec, format: Format, item: RewardItem) -> Reading | None:
    if item.explanation is not None:
        return Reading(item.explanation, True)
    if item.completion is None:
        return None
    parts = text_of_completion(format, item.completion)
    if not parts.closed and codec.eos_token_id is not None:
        return Reading(parts.text.removesuffix(codec.decode([codec.eos_token_id])), False)
    return Reading(parts.text, parts.closed)


def _of_ids(codec: TextCodec, format: Format, teacher: TeacherTokens) -> Reading:
    unknown = next((i for i in teacher.token_ids if not 0 <= i < codec.vocab_size), None)
    if unknown is not None:
        detail = f"id {unknown} is outside the vocabulary of {codec.vocab_size}"
        raise item_error(Reason.teacher_logprobs_unusable, detail)
    parts = read_completion(codec, format, teacher.token_ids)
    return Reading(parts.text, parts.closed, teacher.token_ids[: parts.n_inside], parts.straddling)


def _same_text(codec: TextCodec, left: str, right: str) -> bool:
    """Whether two texts are equal, apart from what the tokenizer itself does not keep (Unicode forms, white space)."""
    if left == right:
        return True
    kept = _kept(codec, left)
    return kept is not None and kept == _kept(codec, right)


def _kept(codec: TextCodec, text: str) -> str | None:
    """What is left of a text that has been through the tokenizer; None where it cannot go through."""
    try:
        return codec.decode(codec.encode([content(text)]).ids)
    except Untokenizable:
        return None


def keeps_white_space(codec: TextCodec) -> bool:
    """False for word-level tokenizers, whose decoded text has lost it."""
    return _kept(codec, " \n ") == " \n "


def shown(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 :]}")


def usable_logprobs(teacher: TeacherTokens, temperature: float) -> list[float]:
    """The sent log-probs, shape [T], once they are known to be of the distribution that the reward needs.

    Raises:
        ItemError: teacher_logprobs_unusable.
    """
    for refused, detail in (
        (
            len(teacher.token_ids) != len(teacher.logprobs),
            f"{len(teacher.token_ids)} ids and {len(teacher.logprobs)} log-probs",
        ),
        (
            abs(teacher.temperature - temperature) > TEMPERATURE_TOLERANCE,
            f"they are of temperature {teacher.temperature:g}, the reward's is {temperature:g}",
        ),
        (teacher.top_p != 1, f"top_p {teacher.top_p:g} is another distribution: 1 is needed"),
        (teacher.top_k not in (0, -1), f"top_k {teacher.top_k} is another distribution: 0 or -1 is needed"),
        (not all(LOWEST < value < HIGHEST for value in teacher.logprobs), "a value is no log-prob of a sampled token"),
    ):
        if refused:
            raise item_error(Reason.teacher_logprobs_unusable, detail)
    return teacher.logprobs


def flags(codec: TextCodec, format: Format, reading: Reading, n_think: int) -> list[str]:
    """What a reader of the score should know of the explanation."""
    spelled = any(tag in reading.text for tag in (*format.delimiters, *codec.specials))
    found = {
        "empty_explanation": n_think == 0,
        "delimiter_in_explanation": spelled,
        "closing_tag_missing": not reading.closed,
    }
    return [name for name, true in found.items() if true]
