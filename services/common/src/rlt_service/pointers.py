"""JSON pointers (RFC 6901) into a request, from the places where pydantic found something wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rlt_client.errors import APIError
from rlt_client.schemas.common import FieldError

__all__ = ["at", "field_errors", "pointer"]

E = TypeVar("E", bound=APIError)

_MOST = 50
"""A batch of thousands with the same mistake in each says so in kilobytes, not megabytes."""


def pointer(path: Iterable[str | int]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def at(place: str, error: E) -> E:
    """The same error, which points to this place of the request."""
    error.errors = [FieldError(pointer=place, detail=error.detail or error.title)]
    return error


def field_errors(errors: Sequence[Any], body: Any) -> list[FieldError]:
    """What pydantic found in a request, each thing once. Parameters outside the body point like `/query/limit`."""
    found = [_field_error(error, body) for error in errors]
    return list({(error.pointer, error.detail): error for error in found}.values())[:_MOST]


def _field_error(error: Any, body: Any) -> FieldError:
    source, *path = error["loc"]
    message = error["msg"].removeprefix("Value error, ")
    if source == "body":
        return FieldError(pointer=pointer(_in_document(path, body, error["type"])), detail=message)
    return FieldError(pointer=pointer(error["loc"]), detail=f"{source} parameter: {message}")


def _in_document(path: Sequence[str | int], document: Any, kind: str) -> Iterator[str | int]:
    """Only the parts that exist in the document: pydantic also names branches of unions and validators."""
    node = document
    for position, part in enumerate(path):
        is_member = isinstance(node, dict) and part in node
        is_element = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if is_member or is_element:
            node = node[part]
            yield part
        elif kind == "missing" and position == len(path) - 1:
            yield part
