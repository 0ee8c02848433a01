"""Weights as versions: written whole to a shared folder, then loaded by the engine."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rlt_trainer.disk import sync

__all__ = ["Versions"]

_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = ".writing-"


class Versions:
    """The folders of a run's published weights, `step-000012` and so on.

    Args:
        keep: newest ones that stay.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder.resolve()
        self._keep = keep

    def write(self, step: int, save: Callable[[Path], None]) -> Path:
        """The folder of a step, written by `save` and put in place whole; one that is there is replaced."""
        return _write_whole(self._folder / f"step-{step:06d}", save)

    def prune(self, step: int) -> None:
        """Remove all but the newest up to `step`. Later ones are of a run that was killed, and this one goes on from
        before; so is what it left half written."""
        for left in self._folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        found = {int(match[1]): path for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name))}
        kept = sorted(each for each in found if each <= step)[-self._keep :]
        for each, path in found.items():
            if each not in kept:
                shutil.rmtree(path, ignore_errors=True)


def _write_whole(target: Path, save: Callable[[Path], None]) -> Path:
    """A folder written by `save` and put in place once all of it is on the disk; one that is there is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target.parent))
    old = fresh.with_suffix(".old")
    try:
        save(fresh)
        _settle(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target


def _settle(folder: Path) -> None:
    """Readable to the engine's user, which mkdtemp and safetensors do not allow, and on the disk."""
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)
    for path in [*folder.iterdir(), folder]:
        sync(path)
