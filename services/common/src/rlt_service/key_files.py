"""The keys of the settings, read again while the server runs.

They stand in a keys file, in the secret file of the setting `keys`, or in the setting itself, which cannot change.
A file that cannot be read any more, or holds a line that is no key, leaves the keys as they were and says so: in the
log, and in `rlt_keys_files_unusable`. One that holds no key any more is taken at its word: nobody is let in by it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from rlt_service.keys import BadKeys, ChainedKeys, Key, KeyStore, StaticKeys, parse_keys
from rlt_service.metrics import Metrics
from rlt_service.secret_files import WatchedFile
from rlt_service.settings import ServerSettings, secret_file

__all__ = ["LOOK_S", "KeyFiles", "observe_keys"]

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # between looks at the files: how long a key outlives its line, with `SETTLE_S`


class _Source:
    """Keys of one place."""

    def __init__(self, name: str, text: str, file: WatchedFile | None = None) -> None:
        """Raises `BadKeys`."""
        self.name = name
        self.wrong = False
        self.file = file
        self.keys = parse_keys(text, name)

    def look(self) -> bool:
        """Whether the keys are others now."""
        if self.file is None:
            return False
        try:
            if not self.file.changed():
                return False
            found = parse_keys(self.file.read(), self.name)
        except (OSError, ValueError, BadKeys) as error:
            self._keep(error)
            return False
        self.wrong = False
        before, self.keys = self.keys, found
        return found != before

    def _keep(self, error: Exception) -> None:
        assert self.file is not None
        if not isinstance(error, OSError):
            self.file.give_up()
        if not self.wrong or isinstance(error, BadKeys):  # each bad content once, an absent file once
            log.error("keys cannot be read again, the old ones stay: %s", _reason(error))
        self.wrong = True


class KeyFiles:
    """A `KeyStore`."""

    def __init__(self, sources: Sequence[_Source], *, every: float = LOOK_S) -> None:
        self._sources = sources
        self._every = every
        self._keys = self._all()
        self._look_at = 0.0

    @classmethod
    def of(cls, settings: ServerSettings, *, every: float = LOOK_S) -> Self:
        """Raises `BadKeys`, also for a file that cannot be read."""
        sources = [_inline(settings)]
        if settings.keys_file is not None:
            sources.append(_of_file(settings.keys_file))
        return cls(sources, every=every)

    @property
    def watches(self) -> bool:
        """Whether the keys may become others."""
        return any(source.file is not None for source in self._sources)

    def __len__(self) -> int:
        return len(self._keys)

    def observe(self, metrics: Metrics) -> None:
        """Tell how many keys there are, and how many files are not as they should be."""
        metrics.gauge("keys", "keys of files and settings that are accepted").set_function(self._count)
        wrong = metrics.gauge("keys_files_unusable", "files of keys whose newest content cannot be used")
        wrong.set_function(self._unusable)

    async def find(self, token_hash: str) -> Key | None:
        self._look()
        return await self._keys.find(token_hash)

    def _count(self) -> float:
        self._look()
        return float(len(self._keys))

    def _unusable(self) -> float:
        self._look()
        return float(sum(source.wrong for source in self._sources))

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + self._every
        if True in [source.look() for source in self._sources]:
            self._keys = self._all()
            log.info("keys were read again", extra={"keys": len(self._keys)})

    def _all(self) -> StaticKeys:
        return StaticKeys([key for source in self._sources for key in source.keys])


def observe_keys(store: KeyStore | None, metrics: Metrics) -> None:
    """Metrics of the files among the stores."""
    stores = store.stores if isinstance(store, ChainedKeys) else [store]
    for files in stores:
        if isinstance(files, KeyFiles):
            files.observe(metrics)


def _inline(settings: ServerSettings) -> _Source:
    """The setting `keys`, and the secret file where that is where it came from."""
    path = secret_file(type(settings), "keys")
    if path is None:
        return _Source("keys", settings.keys)
    watched = WatchedFile(path)
    try:
        text = watched.read()
    except (OSError, ValueError):
        return _Source("keys", settings.keys)
    if text.strip() != settings.keys.strip():  # a flag or a variable goes before the file
        return _Source("keys", settings.keys)
    return _Source(f"keys file {path}", text, watched)


def _of_file(path: Path) -> _Source:
    watched = WatchedFile(path)
    try:
        return _Source(f"keys file {path}", watched.read(), watched)
    except (OSError, ValueError) as error:
        raise BadKeys(f"keys file {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str | None:
    if isinstance(error, OSError):
        return error.strerror
    return "not UTF-8, or too large" if isinstance(error, ValueError) else str(error)
