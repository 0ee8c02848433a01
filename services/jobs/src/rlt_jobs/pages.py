"""Keyset pages: a cursor holds the key of the last row, so that a page costs the same wherever it lies."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query

from rlt_client.errors import InvalidRequest
from rlt_client.schemas.builds import storable_json
from rlt_client.schemas.common import FieldError

__all__ = ["Cursor", "Limit", "bad_cursor", "decode", "encode", "split"]

MAX_CURSOR = 1_024  # characters; ours are below 200

Cursor = Annotated[str | None, Query(max_length=MAX_CURSOR, description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=500, description="rows a page")]


def encode(order: str, key: Sequence[Any]) -> str:
    """`order` names what the key sorts by, so that a cursor of one order is not taken for another's."""
    return base64.urlsafe_b64encode(json.dumps([order, *key]).encode()).decode().rstrip("=")


def decode(cursor: str | None, order: str, *kinds: type) -> list[Any] | None:
    """The key, of these types; None without a cursor. Raises `InvalidRequest` for a cursor that is not of this list."""
    if cursor is None:
        return None
    try:
        name, *key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, TypeError) as error:
        raise bad_cursor() from error
    values: list[Any] = key
    fits = len(key) == len(kinds) and all(type(value) is kind for value, kind in zip(key, kinds, strict=True))
    if name != order or not fits or any(type(value) is int and abs(value) >= 2**63 for value in key):
        raise bad_cursor()
    try:
        storable_json(key)
    except ValueError as error:
        raise bad_cursor() from error
    return values


def bad_cursor() -> InvalidRequest:
    """The refusal of a cursor that was not made by `encode`."""
    detail = "is not the `next` of a page of this list in this order"
    return InvalidRequest(errors=[FieldError(pointer="/query/cursor", detail=detail)], type="bad_cursor")


def split(rows: Sequence[Any], limit: int) -> tuple[list[Any], bool]:
    """The page out of `limit + 1` rows asked for, and whether more follow."""
    return list(rows[:limit]), len(rows) > limit
