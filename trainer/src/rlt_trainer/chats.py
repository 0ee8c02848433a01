"""Chats as token ids by the model's own template: what the assistant says is learned, and that it ends there.

The template is rendered around marks, once for each sequence of roles, and the texts are put in their places
afterwards: whatever a text spells, it stays text, and the template cannot change it. No `{% generation %}` is needed.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from rlt_client.prompts import Piece, TextCodec, content, literal
from rlt_trainer.config.distill import TraceShape
from rlt_trainer.errors import BadConfig, BadData
from rlt_trainer.texts import NOT_LEARNED, Example

__all__ = ["ChatWriter", "Turn", "turns_of"]

_ASSISTANT: Final = "assistant"
_ROLES: Final = {"human": "user", "gpt": _ASSISTANT}
"""ShareGPT's names of roles in the words of chat templates."""
_KEYS: Final = {
    TraceShape.messages: (("messages",), "role", "content"),
    TraceShape.prompt_completion: (("prompt", "completion"), "role", "content"),
    TraceShape.sharegpt: (("conversations",), "from", "value"),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """What one role says."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class _Segment:
    """A stretch of a rendered chat: the template's own text, and the numbers of turns where theirs belongs."""

    learned: bool
    parts: tuple[str | int, ...]


def turns_of(row: Mapping[str, Any], shape: TraceShape) -> list[Turn]:
    """Raises `BadData` for what is not a chat with an answer."""
    columns, role, text = _KEYS[shape]
    turns = [_turn(said, role, text) for column in columns for said in row[column]]
    if not any(turn.role == _ASSISTANT for turn in turns):
        raise BadData(f"the assistant says nothing in {', '.join(columns)}")
    return turns


def _turn(said: Any, role: str, text: str) -> Turn:
    who = said.get(role) if isinstance(said, Mapping) else None
    what = said.get(text) if isinstance(said, Mapping) else None
    if not isinstance(who, str) or not isinstance(what, str):
        raise BadData(f"want turns of {role} and {text}, both texts, not {said!r:.80}")
    if who in ("gpt", _ASSISTANT) and not what.strip():
        raise BadData("what the assistant says is empty")
    return Turn(_ROLES.get(who, who), what)


class ChatWriter:
    """Writes chats by the template of one tokenizer."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._segments = lru_cache(maxsize=256)(self._rendered)  # a chat has few roles, and a data set few such shapes

    def example(self, turns: Sequence[Turn]) -> Example:
        """Ids and labels of a chat that ends with the assistant's last turn.

        Raises:
            BadConfig: the template does not take these roles, or writes them in a way that cannot be learned.
            Untokenizable: the vocabulary cannot represent a text.
        """
        ids: list[int] = []
        labels: list[int] = []
        segments = self._segments(tuple(turn.role for turn in turns))
        for place, segment in enumerate(segments, 1):
            written = self._encoded(segment, turns)
            learned = self._until_end(written, last=place == len(segments)) if segment.learned else []
            rest = written[len(learned) :] if place < len(segments) else []
            ids += [*learned, *rest]
            labels += [*learned, *([NOT_LEARNED] * len(rest))]
        return Example(ids, labels)

    def _encoded(self, segment: _Segment, turns: Sequence[Turn]) -> list[int]:
        pieces: list[Piece] = [
            content(turns[part].text) if isinstance(part, int) else literal(part) for part in segment.parts
        ]
        return self._codec.encode(pieces).ids

    def _until_end(self, ids: list[int], *, last: bool) -> list[int]:
        """What a model writes in its turn: to the end of turn, after which templates put white space."""
        eos = self._codec.eos_token_id
        if eos is None:
            return ids
        if eos in ids:
            return ids[: len(ids) - ids[::-1].index(eos)]
        return [*ids, eos] if last else ids

    def _rendered(self, roles: tuple[str, ...]) -> list[_Segment]:
        last = len(roles) - roles[::-1].index(_ASSISTANT)
        marks = [secrets.token_hex(16) for _ in roles[:last]]
        said = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=False)]
        whole = self._render(said)
        if any(whole.count(mark) != 1 for mark in marks):
            raise BadConfig("the model's chat template does not give each message exactly once: export shape=raw")
        segments, position = [], 0
        for place in (place for place, role in enumerate(roles[:last]) if role == _ASSISTANT):
            asked = self._render(said[:place], add_generation_prompt=True)
            answered = self._render(said[: place + 1])
            if not (whole.startswith(asked) and whole.startswith(answered) and position <= len(asked) < len(answered)):
                raise BadConfig(
                    "the model's chat template writes a turn of the assistant in another way than it asks for one, or "
                    "earlier turns otherwise than the last: export shape=raw, which needs no template"
                )
            segments.append(_segment(whole[position : len(asked)], marks, learned=False))
            segments.append(_segment(whole[len(asked) : len(answered)], marks, learned=True))
            position = len(answered)
        return segments

    def _render(self, said: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        try:
            text: str = self._codec.tokenizer.apply_chat_template(
                said, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # jinja's errors, and ValueError where there is no template at all
            roles = ", ".join(message["role"] for message in said)
            raise BadConfig(
                f"the model's chat template does not take messages of {roles or 'nobody'}: {error}; export shape=raw, "
                "which needs none"
            ) from error
        return text


def _segment(text: str, marks: Sequence[str], *, learned: bool) -> _Segment:
    parts = re.split("|".join(f"({mark})" for mark in marks), text)
    return _Segment(learned, tuple(marks.index(part) if part in marks else part for part in parts if part))
