"""Secrets that lie in files and are read again when these change, so that rotating one needs no restart.

A change is found by the file's identity (device, inode, size, times), so it does not matter how it was made: rewritten
in place, renamed over, or by swapping a symlink further up the path, as Kubernetes does with mounted secrets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from rlt_service.hidden import hide
from rlt_service.settings import ServerSettings, secret_file

__all__ = ["SETTLE_S", "Secret", "WatchedFile", "secret"]

log = logging.getLogger(__name__)

SETTLE_S: Final = 0.5  # a file that was written a moment ago may be half of itself
MOST_BYTES: Final = 2**20  # ten thousand keys; a larger file is no file of keys

Signature = tuple[int, int, int, int, int]


class WatchedFile:
    """Text of a small file, and whether it has changed since it was last read.

    Args:
        settle: seconds that a new content must be old before it is taken for whole.
    """

    def __init__(self, path: Path, *, settle: float = SETTLE_S) -> None:
        self.path = path
        self._settle = settle
        self._read: Signature | None = None

    def read(self) -> str:
        """Raises `OSError`, and `ValueError` for what is no text of a sane size."""
        before = _signature(self.path)
        with self.path.open(encoding="utf-8") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES} bytes")
        self._read = before
        return text

    def changed(self) -> bool:
        """Whether there is another, settled content. Raises `OSError` where the file cannot be looked at."""
        now = _signature(self.path)
        return now != self._read and abs(time.time() - now[4] / 1e9) >= self._settle

    def give_up(self) -> None:
        """Ask no more for this content: it was found wanting."""
        try:
            self._read = _signature(self.path)
        except OSError:  # gone meanwhile: whatever comes next is new
            self._read = None


def _signature(path: Path) -> Signature:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Secret:
    """One secret, as it stands in its file now. Called for each use; costs a `stat`.

    A file that is gone, empty or unreadable leaves the last good value, and says so once.
    """

    def __init__(self, file: WatchedFile, value: str) -> None:
        self._file = file
        self._value = value
        self._wrong = False

    def __call__(self) -> str:
        try:
            if self._file.changed():
                self._take(self._file.read().strip())
        except (OSError, ValueError) as error:
            self._complain(error.strerror if isinstance(error, OSError) else "not UTF-8, or too large")
        return self._value

    def _take(self, value: str) -> None:
        if not value or not (value.isascii() and value.isprintable()):  # it goes into a header
            self._file.give_up()
            self._complain("empty, or not one line of printable ASCII")
            return
        self._wrong = False
        if value != self._value:
            hide([value])
            self._value = value
            log.info("a secret was read again", extra={"file": str(self._file.path)})

    def _complain(self, why: str | None) -> None:
        if not self._wrong:
            self._wrong = True
            log.error("a secret's file cannot be used, the old value stays", extra=_told(self._file.path, why))


def _told(path: Path, why: str | None) -> dict[str, str | None]:
    return {"file": str(path), "reason": why}


def secret(settings: ServerSettings, name: str) -> Callable[[], str] | str | None:
    """A `SecretStr` setting for a client: as a `Secret` where it came from a secret file, else as it is."""
    given = getattr(settings, name)
    if given is None:
        return None
    value = given.get_secret_value() if isinstance(given, SecretStr) else str(given)
    file = secret_file(type(settings), name)
    watched = WatchedFile(file) if file else None
    try:
        if watched is None or watched.read().strip() != value.strip():  # a flag or a variable goes before the file
            return value
    except (OSError, ValueError):
        return value
    return Secret(watched, value)
