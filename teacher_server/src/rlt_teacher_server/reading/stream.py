"""The explanation's text while it is being written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from rlt_client.formats import Format
from rlt_client.prompts import TextCodec
from rlt_client.tags import breaking_tags
from rlt_teacher_server.reading.decoding import IncrementalDecoder

__all__ = ["ExplanationText"]

NEVER: Final = r"(?!)"


class ExplanationText:
    """One sample's text, piece by piece: what `feed` and `end` return joins to the text of a complete explanation.

    Never a tag or the beginning of one, half a character, or anything after a tag: such pieces are held back until what
    follows shows what they are. The format's `held` text comes with the first piece.
    """

    def __init__(self, codec: TextCodec, format: Format) -> None:
        self._decoder = IncrementalDecoder(codec)
        self._close = format.teacher.close
        breaking = breaking_tags(codec, format)
        self._close_begun = _begun((self._close,))
        self._tag = _whole(breaking)
        self._tag_begun = _begun(breaking)
        self._held = format.teacher.held
        self._text = ""  # decoded, not returned yet
        self._over = False

    def feed(self, token_ids: Sequence[int]) -> str:
        """What these ids add, possibly nothing. Constant time an id, however long the sample is."""
        return "" if self._over else self._take(self._decoder.feed(token_ids))

    def end(self) -> str:
        """What was held back, now that no more ids come: still nothing that looks like a tag or half a character."""
        return "" if self._over else self._take(self._decoder.end())

    def _take(self, piece: str) -> str:
        self._text += piece
        held, self._held = self._held, ""
        certain = self._certain(self._text)
        piece, self._text = self._text[:certain], self._text[certain:]
        return held + piece

    def _certain(self, text: str) -> int:
        """How many of the first characters are the explanation's."""
        close = text.find(self._close)
        inside = close if close >= 0 else _start(self._close_begun, text, len(text))
        tag = self._tag.search(text, 0, inside)
        self._over = close >= 0 or tag is not None
        if tag is not None:
            return tag.start()
        return inside if self._over else _start(self._tag_begun, text, inside)


def _start(begun: re.Pattern[str], text: str, end: int) -> int:
    """Where what may become a tag begins in `text[:end]`; `end` if nothing may."""
    found = begun.search(text, 0, end)
    return found.start() if found else end


@lru_cache(maxsize=64)  # of each format two
def _begun(tags: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the longest end of a text that is the beginning of a tag, but not all of it."""
    return re.compile(f"(?:{'|'.join(_prefixes(tag) for tag in tags if len(tag) > 1) or NEVER})\\Z")


def _prefixes(tag: str) -> str:
    """`abc` → `a(?:b)?`."""
    pattern = ""
    for character in reversed(tag[:-1]):
        pattern = re.escape(character) + (f"(?:{pattern})?" if pattern else "")
    return pattern


@lru_cache(maxsize=64)
def _whole(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tags)) or NEVER)
