"""The formats that the model can take, each with what ends an explanation, and why it cannot take the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlt_client.errors import InvalidRequest, NotFound
from rlt_client.formats import Format, FormatError
from rlt_client.prompts import TextCodec, Untokenizable, content, literal, teacher_prompt
from rlt_client.schemas.common import FieldError

__all__ = ["Catalog", "Entry", "closing_tokens", "prove"]


@dataclass(frozen=True, slots=True)
class Entry:
    format: Format
    stop_token_ids: tuple[int, ...]
    """The closing tag, where it is one token."""
    refusal: str | None
    """Why the model cannot take the format; None where it can."""


class Catalog:
    """Formats by name, each proved against the model.

    Args:
        required: names without which the server is of no use.

    Raises:
        FormatError: the model cannot take a required format.
    """

    def __init__(self, formats: Mapping[str, Format], codec: TextCodec, *, default: str, required: set[str]) -> None:
        self.default = default
        self._entries = {name: _entry(format, codec) for name, format in sorted(formats.items())}
        for name in sorted({default, *required}):
            refusal = self._entries[name].refusal
            if refusal is not None:
                raise FormatError(refusal)

    def get(self, name: str | None) -> Entry:
        """Raises `NotFound` (unknown_format) or `InvalidRequest` (format_unavailable)."""
        entry = self._entries.get(name or self.default)
        if entry is None:
            detail = f"no such format; there are {', '.join(self._entries)}"
            raise NotFound(detail, type="unknown_format", errors=[FieldError(pointer="/format", detail=detail)])
        if entry.refusal is not None:
            errors = [FieldError(pointer="/format", detail=entry.refusal)]
            raise InvalidRequest(entry.refusal, type="format_unavailable", errors=errors)
        return entry


def _entry(format: Format, codec: TextCodec) -> Entry:
    try:
        prove(format, codec)
        return Entry(format, closing_tokens(format, codec), None)
    except FormatError as error:
        return Entry(format, (), str(error))


def prove(format: Format, codec: TextCodec) -> None:
    """The decoded prompt must hold the probe's question and answer exactly once each, and the tag must be writable.

    Raises:
        FormatError: it does not, or the tokenizer or its chat template cannot take the format.
    """
    probe = format.probe
    try:
        ids = codec.encode(teacher_prompt(codec, format, probe.question, probe.answer)).ids
        closing_tokens(format, codec)
        texts = [codec.decode(codec.encode([content(text)]).ids) for text in (probe.question, probe.answer)]
    except (Untokenizable, FormatError) as error:
        raise FormatError(f"format {format.name!r}: {error}") from error
    rest = _squeezed(codec.decode(ids))
    for name, text in zip(("question", "answer"), map(_squeezed, texts), strict=True):
        if rest.count(text) != 1:
            raise FormatError(f"format {format.name!r}: the prompt holds the probe's {name} {rest.count(text)} times")
        rest = rest.replace(text, "\0")


def closing_tokens(format: Format, codec: TextCodec) -> tuple[int, ...]:
    """The id of the closing tag where it is a single token; nothing where it is several.

    Raises:
        Untokenizable: the model could not write it.
    """
    ids = codec.encode([literal(format.teacher.close)]).ids
    return tuple(ids) if len(ids) == 1 else ()


def _squeezed(text: str) -> str:
    return " ".join(text.split())
