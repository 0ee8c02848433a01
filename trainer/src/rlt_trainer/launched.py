"""What torchrun and accelerate say of the processes that they start together. Read without torch."""

from __future__ import annotations

import os

__all__ = ["is_first", "processes"]


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"
