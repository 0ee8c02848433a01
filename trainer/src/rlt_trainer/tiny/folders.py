"""Model folders that are there whole or not at all, whoever else is making the same one."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def default_cache() -> Path:
    """`$RLT_CACHE`, else `rlt-platform` in the user's cache folder."""
    if own := os.environ.get("RLT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlt-platform"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file beside the thing being made; the system drops it with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def whole(folder: Path, *, replacing: str | None = None) -> Iterator[Path]:
    """A temporary folder that takes the name `folder` when the block ends well, and vanishes when it does not.

    Args:
        replacing: a folder that holds a file of this name is an earlier one of the same kind, and may be replaced.

    Raises:
        FileExistsError: `folder` exists, is not empty and may not be replaced.
    """
    if folder.exists() and not _may_go(folder, replacing):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield unfinished
        _publish(unfinished)
        if folder.exists():
            folder.rename(unfinished.with_name(f"{unfinished.name}.old"))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(unfinished.with_name(f"{unfinished.name}.old"), ignore_errors=True)


def _may_go(folder: Path, replacing: str | None) -> bool:
    if not folder.is_dir():
        return False
    return not any(folder.iterdir()) or (replacing is not None and (folder / replacing).is_file())


def _publish(folder: Path) -> None:
    """Readable to other users, as mkdtemp and safetensors do not leave it: a server may run as one."""
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, made by `make` (with `whole`) if it is not there: once, though several processes ask at a time."""
    if not folder.exists():
        with locked(folder.with_name(f"{folder.name}.lock")):
            for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            if not folder.exists():
                make(folder)
    return folder


def content_hash(*parts: bytes) -> str:
    """16 hexadecimal digits over the parts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]
