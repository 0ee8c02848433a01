"""Checkpoints that are whole or not there.

transformers writes a checkpoint file by file. Here it counts only once a last file says that all others are on the
disk; what a killed run left without one is removed when the run goes on.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Final

from rlt_trainer.disk import sync, write_whole
from rlt_trainer.errors import BadConfig

__all__ = ["MARK", "newest", "prune", "seal", "sealed", "starting_point"]

MARK: Final = "complete.json"
_NAME: Final = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Everything in the folder is written to the disk, then the mark, with `facts` in it."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARK:
            sync(path)
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_whole(folder / MARK, json.dumps({**facts, "files": sizes}, indent=2))
    sync(folder)


def sealed(folder: Path) -> dict[str, Any] | None:
    """What the mark says; None where there is none, or a file is not as it says."""
    try:
        facts: dict[str, Any] = json.loads((folder / MARK).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in facts["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return facts if whole else None


def starting_point(output: Path, *, resume: bool) -> Path | None:
    """The checkpoint that a run goes on from; what a killed run left half written is removed.

    Raises:
        BadConfig: the folder holds a run already, which `resume` does not allow to go on with.
    """
    if not resume and (used := next((path for path in [*_numbered(output), output / "model"] if path.exists()), None)):
        raise BadConfig(f"{output} holds {used.name}: name another output, or set checkpoints.resume")
    prune(output)
    return newest(output)


def newest(output: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    return next((folder for folder in reversed(_numbered(output)) if sealed(folder) is not None), None)


def prune(output: Path, keep: int = 0) -> None:
    """Remove checkpoints that are not whole, and of the others all but the newest `keep`; 0: none of these."""
    found = _numbered(output)
    whole = [folder for folder in found if sealed(folder) is not None]
    kept = set(whole[-keep:])
    for folder in found:
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def _numbered(output: Path) -> list[Path]:
    if not output.is_dir():
        return []
    found = [(int(match[1]), path) for path in output.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
