"""Keys of services, by the environment variables that hold them."""

from __future__ import annotations

import os

from rlt_trainer.errors import BadConfig

__all__ = ["key_of"]


def key_of(variable: str | None) -> str | None:
    """None for no variable. Raises `BadConfig` where it holds nothing."""
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise BadConfig(f"the environment variable {variable} holds no key")
    return key
