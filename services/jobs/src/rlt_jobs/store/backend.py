"""What a place for files must be able to do. Names are relative and checked by the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Protocol

__all__ = ["Backend", "Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as the place itself lists it."""

    uri: str
    bytes: int
    changed_at: datetime
    upload_id: str | None = None
    """Of one of S3's multipart uploads that is not completed."""


class Backend(Protocol):
    """Every method raises OSError and nothing else: FileNotFoundError, FileExistsError for a taken name, others."""

    url: str

    def writing(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        """A new file, there for good once the block ends; of a block that fails nothing remains."""

    def reading(self, uri: str) -> IO[bytes]:
        """Unbuffered and seekable."""

    def size(self, uri: str) -> int: ...

    def remove(self, uri: str) -> None:
        """A file that is not there is no error."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """All files below a folder, those of writers that were killed included."""

    def unfinished(self) -> Iterator[Entry]:
        """What killed writers left that is no file yet."""

    def discard(self, entry: Entry) -> None:
        """Remove one of `unfinished`."""

    def there(self) -> bool:
        """Whether the place itself exists: without it, a missing file says nothing."""

    def probe(self) -> None:
        """Raises OSError if nothing could be written now."""

    def room(self) -> tuple[int, int] | None:
        """Bytes free and in all, where the place has an end."""

    def local(self, uri: str, /) -> Path | None:
        """The file's own path, where it has one."""
