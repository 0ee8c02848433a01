"""Which tags an explanation must not spell."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from rlt_client.formats import Format
from rlt_client.prompts import TextCodec

__all__ = ["breaking_tags", "spells_any"]

MARKUP: Final = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)


def breaking_tags(codec: TextCodec, format: Format) -> tuple[str, ...]:
    """Tags that make an explanation unfit for a student's text.

    They are the tag that ends the student's thoughts, however it looks, and of the other tags and the tokenizer's
    special tokens those that nobody writes by accident: a word or more between signs, as in `<think>` or `[END]`. A
    sign such as `>` and a word such as `Solution:` are ordinary text.
    """
    marked = [tag for tag in (*format.delimiters, *codec.specials) if MARKUP.fullmatch(tag)]
    return tuple(dict.fromkeys(tag for tag in (format.student.close.strip(), *marked) if tag))


def spells_any(text: str, tags: Iterable[str]) -> bool:
    return any(tag in text for tag in tags)
