"""Ids to text as they come, in constant time an id."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from rlt_client.prompts import TextCodec

__all__ = ["IncrementalDecoder"]

UNFINISHED: Final = "\ufffd"
WINDOW: Final = 32
CONTEXT: Final = 8
"""Ids that are decoded again with new ones: more than one, since decoders treat the first word of a text on its own,
and at least the four bytes of a character."""


class IncrementalDecoder:
    """What it returns joins to the text of all ids, as far as that can be told before the next ones come.

    Held back are a last character whose bytes have not all come, a run of byte tokens (`<0xE6>`, which decoders read as
    a whole: one wrong byte makes all of it unreadable) that may go on, and an end-of-turn token that may be the last.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._undecided = _undecided(codec)
        self._window: list[int] = []
        self._shown = 0  # characters of the window's text that were returned
        self._waiting: list[int] = []

    def feed(self, ids: Sequence[int]) -> str:
        end = len(ids)
        while end and ids[end - 1] in self._undecided:
            end -= 1
        settled = [*self._waiting, *ids[:end]] if end else []
        self._waiting = [*ids[end:]] if end else [*self._waiting, *ids]
        return self._decode(settled)

    def end(self) -> str:
        """What waited for more, now that none comes."""
        waiting, self._waiting = self._waiting, []
        if waiting and waiting[-1] == self._codec.eos_token_id:
            waiting.pop()
        return self._decode(waiting)

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        self._window += ids
        text = self._codec.decode(self._window)
        shown = len(text) - text.endswith(UNFINISHED)
        new = text[self._shown : shown]
        self._shown = max(self._shown, shown)
        if len(self._window) > WINDOW:
            self._slide(len(text) - self._shown)
        return new

    def _slide(self, hidden: int) -> None:
        """Forget the oldest ids. `hidden`: characters at the end that were not returned yet."""
        context = self._window[-CONTEXT:]
        length = len(self._codec.decode(context))
        if length > hidden:  # ids that read as nothing would leave the next ones at the beginning of a text
            self._window, self._shown = context, length - hidden


@lru_cache(maxsize=8)  # one codec a server
def _undecided(codec: TextCodec) -> frozenset[int]:
    backend = codec.tokenizer.backend_tokenizer
    tokens = [backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    return frozenset(token for token in (*tokens, codec.eos_token_id) if token is not None)
