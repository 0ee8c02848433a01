"""Files that survive a power cut, whole or as they were."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync", "write_whole"]


def sync(path: Path) -> None:
    """What was written to a file, or the names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(file: Path, text: str) -> None:
    """The file has all of the text, or what it had before."""
    fresh = file.with_name(f".{file.name}")
    fresh.write_text(text, encoding="utf-8")
    sync(fresh)
    fresh.rename(file)
