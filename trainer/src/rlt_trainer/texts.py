"""Rows as token ids: prompts exactly as the servers write them, and what is learned after each.

Prompt and completion are encoded apart, as they are when an engine is given the prompt and continues it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rlt_client.formats import Format, FormatError, load_formats
from rlt_client.prompts import Piece, TextCodec, content, fill, literal, student_prompt, teacher_prompt
from rlt_trainer.config.sections import TextRole

__all__ = ["NOT_LEARNED", "Example", "Text", "Writer", "named_format"]

NOT_LEARNED: Final = -100
"""The label of a token that the loss leaves out; transformers' own."""


@dataclass(frozen=True, slots=True)
class Example:
    """What a model is trained on: token ids and labels, both of shape [T]. Each label stands at its own token."""

    input_ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def teaches(self) -> bool:
        return any(label != NOT_LEARNED for label in self.labels)

    def cut(self, tokens: int) -> Example:
        """The first tokens alone: where the end is cut off, ending there is not learned."""
        return Example(self.input_ids[:tokens], self.labels[:tokens])


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids of a prompt and of what follows it."""

    prompt_ids: list[int]
    completion_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def example(self) -> Example:
        """The completion is learned, the prompt is not."""
        ids = [*self.prompt_ids, *self.completion_ids]
        return Example(ids, [*([NOT_LEARNED] * len(self.prompt_ids)), *self.completion_ids])


class Writer:
    """Writes what a teacher or a student reads and writes, in one format, for one tokenizer."""

    def __init__(self, codec: TextCodec, format: Format) -> None:
        self.codec = codec
        self.format = format

    def prompt(self, role: TextRole, question: str, answer: str, system: str | None = None) -> list[int]:
        """Ids of the prompt; a student's does not hold the answer.

        Args:
            system: in place of the format's system message of the student.

        Raises:
            Untokenizable: the vocabulary cannot represent a text.
        """
        if role is TextRole.teacher:
            return self._encode(teacher_prompt(self.codec, self.format, question, answer))
        return self._encode(student_prompt(self.codec, self.format, question, system))

    def text(self, role: TextRole, question: str, answer: str, explanation: str, system: str | None = None) -> Text:
        """Prompt and completion, the end of the text included.

        Args:
            explanation: as `/explain` returns it: with what the format's prompt already holds of it, or without.

        Raises:
            Untokenizable: the vocabulary cannot represent a text.
        """
        prompt_ids = self.prompt(role, question, answer, system)
        if role is TextRole.teacher:
            held = explanation.removeprefix(self.format.teacher.held)
            return Text(prompt_ids, self._ended([content(held), literal(self.format.teacher.close)]))
        part = self.format.student
        answered = fill(part.answer, answer=answer)
        return Text(prompt_ids, self._ended([content(explanation), literal(part.close), *answered]))

    def _ended(self, pieces: list[Piece]) -> list[int]:
        ids, eos = self._encode(pieces), self.codec.eos_token_id
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]

    def _encode(self, pieces: list[Piece]) -> list[int]:
        return self.codec.encode(pieces).ids


def named_format(name: str, folder: Path | None) -> Format:
    """Raises `FormatError` for a name that there is no format of."""
    formats = load_formats(folder)
    if name not in formats:
        raise FormatError(f"there is no format {name!r}, but {', '.join(sorted(formats))}")
    return formats[name]
