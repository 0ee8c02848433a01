"""Explanations in the shapes that people have them: bare, or between the tags of a format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlt_client.formats import Format, FormatError
from rlt_client.formats.model import PLACEHOLDER

__all__ = ["Trace", "TraceReader"]

TAG = re.compile(r"<[^<>]+>")
"""What no prose is taken for. Formats with other delimiters are looked for only in builds that name them."""


@dataclass(frozen=True, slots=True)
class Trace:
    explanation: str
    """The text between the tags, white space included."""
    answer: str | None
    """What stands behind the student's thoughts, where something does."""


@dataclass(frozen=True, slots=True)
class _Tags:
    """How a text opens and closes an explanation; either side's of a format."""

    open: str
    close: str
    held: str
    """Belongs to an explanation whose opening tag is in the prompt, and not in the text."""
    answers: Format | None
    """The format, if an answer follows the closing tag."""


class TraceReader:
    """Takes explanations out of texts.

    A text between the student's tags (`<think>…</think>` and an answer, as DeepSeek-R1 writes) or the teacher's gives
    what stands between them; the opening tag may be missing, as where a chat template wrote it. A text without tags is
    the explanation as it is. A text that opens its thoughts and never closes them was cut off: it is refused, as an
    explanation of that kind is `malformed` and never a row of a version.

    Args:
        formats: all known formats by name.
        name: the build's own format, whose tags are looked for first; null: the servers' default.
    """

    def __init__(self, formats: Mapping[str, Format], name: str | None) -> None:
        own = [formats[name]] if name is not None and name in formats else []
        self._tags = [*_tags(own), *filter(_is_unmistakable, _tags(formats.values()))]

    def read(self, text: str) -> Trace:
        """Raises `FormatError` for thoughts that are not closed."""
        for tags in self._tags:
            before, closed, after = text.partition(tags.close)
            if closed:
                return Trace(_inside(before, tags), _answer(after, tags))
            if tags.open and text.lstrip().startswith(tags.open):
                raise FormatError(f"cut off: no {tags.close!r} ends what {tags.open!r} begins")
        return Trace(text, None)


def _tags(formats: Iterable[Format]) -> Iterable[_Tags]:
    for format in formats:
        student, teacher = format.student, format.teacher
        if student.close.strip():
            yield _Tags(student.open.strip(), student.close.strip(), "", format)
        opened = PLACEHOLDER.split(teacher.prefill)[-1].strip().splitlines()
        yield _Tags(opened[-1] if opened else "", teacher.close.strip(), teacher.held, None)


def _is_unmistakable(tags: _Tags) -> bool:
    return bool(TAG.fullmatch(tags.close) and TAG.fullmatch(tags.open))


def _inside(before: str, tags: _Tags) -> str:
    if not tags.open:
        return tags.held + before
    _, opened, inside = before.partition(tags.open)
    return inside if opened else tags.held + before


def _answer(after: str, tags: _Tags) -> str | None:
    """The answer without the format's tags, or null."""
    if tags.answers is None:
        return None
    student = tags.answers.student
    try:
        return tags.answers.parse(f"{student.open}{student.close}{after}")[1]
    except FormatError:
        return after.strip() or None
