"""The formats that this server can use with its models, and why it cannot use the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlt_client.errors import InvalidRequest, NotFound
from rlt_client.formats import Format, FormatError
from rlt_client.prompts import TextCodec
from rlt_client.schemas.common import FieldError
from rlt_reward_server.probe import prove

__all__ = ["Catalog", "Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    format: Format
    refusal: str | None
    """Why the models cannot take it; None where they can."""


class Catalog:
    """Formats by name, each proved against the models.

    Args:
        required: names without which the server is of no use.

    Raises:
        FormatError: the models cannot take a required format.
    """

    def __init__(
        self,
        formats: Mapping[str, Format],
        student: TextCodec,
        teacher: TextCodec | None,
        *,
        default: str,
        required: set[str],
    ) -> None:
        self.default = default
        self.entries = [Entry(format, _refusal(format, student, teacher)) for _, format in sorted(formats.items())]
        self._by_name = {entry.format.name: entry for entry in self.entries}
        for name in sorted({default, *required}):
            refusal = self._by_name[name].refusal
            if refusal is not None:
                raise FormatError(refusal)

    def get(self, name: str | None) -> Format:
        """Raises `NotFound` (unknown_format) or `InvalidRequest` (format_unavailable)."""
        entry = self._by_name.get(name or self.default)
        if entry is None:
            known = ", ".join(self._by_name)
            detail = f"no such format; there are {known}"
            raise NotFound(detail, type="unknown_format", errors=[FieldError(pointer="/format", detail=detail)])
        if entry.refusal is not None:
            errors = [FieldError(pointer="/format", detail=entry.refusal)]
            raise InvalidRequest(entry.refusal, type="format_unavailable", errors=errors)
        return entry.format


def _refusal(format: Format, student: TextCodec, teacher: TextCodec | None) -> str | None:
    try:
        prove(format, student, teacher)
    except FormatError as error:
        return str(error)
    return None
