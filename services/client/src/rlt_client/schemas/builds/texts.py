"""What can be stored: Postgres and UTF-8 decide."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator

__all__ = ["Storable", "storable", "storable_json"]


def storable(text: str) -> str:
    """`text`, if Postgres and UTF-8 can hold it. Raises `ValueError` for a NUL character or half a surrogate pair."""
    if "\0" in text:
        raise ValueError("holds a NUL character, which cannot be stored")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is not Unicode text") from None
    return text


Storable = Annotated[str, AfterValidator(storable)]


def storable_json(value: Any) -> None:
    """Raise `ValueError` for a text or number in `value` that cannot be stored, wherever it stands."""
    if isinstance(value, str):
        storable(value)
    elif isinstance(value, float) and not math.isfinite(value):  # 1e999 is JSON and no number of any kind
        raise ValueError("holds a number that is not finite")
    elif isinstance(value, dict):
        for key, child in value.items():
            storable(key)
            storable_json(child)
    elif isinstance(value, list):
        for child in value:
            storable_json(child)
