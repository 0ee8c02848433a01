r"""What stands in the last `\boxed{…}` of a text."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["last_boxed"]

_OPEN: Final = re.compile(r"\\(?:boxed|fbox)\s*\{")


def last_boxed(text: str) -> str | None:
    """None where there is none, or where it is not closed."""
    opened = list(_OPEN.finditer(text))
    if not opened:
        return None
    depth, start = 1, opened[-1].end()
    for brace in re.finditer(r"\\?[{}]", text[start:]):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return text[start : start + brace.start()].strip()
    return None
