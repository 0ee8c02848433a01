"""Weights as versions: written whole to a shared folder, then loaded by the engine."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["Versions"]

_NAME = re.compile(r"step-(\d+)")


class Versions:
    """The folders of a run's published weights, `step-000012` and so on.

    Args:
        keep: newest ones that stay.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder.resolve()
        self._keep = keep
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, save: Callable[[Path], None]) -> Path:
        """The folder of a step, written by `save` and put in place whole; one that is there is replaced."""
        return self.write_as(f"step-{step:06d}", save)

    def write_as(self, name: str, save: Callable[[Path], None]) -> Path:
        target = self._folder / name
        fresh = Path(tempfile.mkdtemp(prefix=".writing-", dir=self._folder))
        try:
            save(fresh)
            fresh.chmod(0o755)  # mkdtemp keeps it from the engine's user
            _sync(fresh)
            if target.exists():
                target.rename(fresh.with_suffix(".old"))
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(fresh.with_suffix(".old"), ignore_errors=True)
        return target

    def prune(self) -> None:
        """Remove all but the newest, and what a killed run left half written."""
        for left in self._folder.glob(".writing-*"):
            shutil.rmtree(left, ignore_errors=True)
        found = sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))
        for old in found[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
