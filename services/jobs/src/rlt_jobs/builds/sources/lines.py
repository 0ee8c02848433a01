"""Lines of text files, counted in lines and bytes so that reading can go on where it stopped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from rlt_jobs.builds.sources.rows import Position, SourceError

__all__ = ["BOM", "MAX_BLANK", "MAX_LINE", "Lines", "check_blank", "not_text", "plain", "readable", "too_much"]

BOM = b"\xef\xbb\xbf"
MAX_LINE = 64 * 2**20  # bytes; a longer line is a file of another kind
MAX_BLANK = 1_000_000  # lines in a row: no tool writes so many, and a file of nothing else takes hours to read
HEAD = 16  # bytes that tell what a file is

GZIP = b"\x1f\x8b"
OTHERS = {
    b"\xff\xfe": "is UTF-16 text; write it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; write it as UTF-8",
    b"PAR1": "is a Parquet file",
    b"PK\x03\x04": "is a zip archive; send the file inside it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; gzip and plain text are read",
    b"BZh": "is compressed with bzip2; gzip and plain text are read",
    b"\xfd7zXZ": "is compressed with xz; gzip and plain text are read",
}
"""What files of other kinds begin with."""


class _Bounded(gzip.GzipFile):
    """Gives no more than `most` bytes: a gigabyte of blank lines takes a megabyte."""

    most: int | None = None

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        if self.most is not None and self.tell() > self.most:
            raise too_much(self.most)
        return line


def too_much(most: int) -> SourceError:
    return SourceError("too_much_text", f"the file holds more than {most} bytes of text, however well it is compressed")


def plain(file: IO[bytes], most: int | None = None) -> IO[bytes]:
    """The file's text as bytes of UTF-8, decompressed where it is gzip. The caller closes `file`.

    Args:
        most: bytes of text that a compressed file may hold.

    Raises:
        SourceError: empty, or a file of another kind; while it is read, where it holds more.
    """
    raw: Any = file
    head = _head(raw)
    if head.startswith(GZIP):
        raw = _Bounded(fileobj=file)
        raw.most = most
        head = _head(raw)
    if not head:
        raise SourceError("empty_source", "the file is empty")
    if why := not_text(head):
        raise SourceError("unreadable_source", f"the file {why}")
    plain_file: IO[bytes] = raw
    return plain_file


def not_text(head: bytes) -> str | None:
    """What a file that begins so is, if it is no UTF-8 text, for people."""
    known = next((what for magic, what in OTHERS.items() if head.startswith(magic)), None)
    if known is None and b"\0" in head[:HEAD]:
        return "holds NUL bytes: it is no UTF-8 text, but perhaps UTF-16"
    return known


@contextmanager
def readable() -> Iterator[None]:
    """Raises `SourceError` where the file breaks while it is read."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError("unreadable_source", f"not a whole gzip file: {error}") from error
    except OSError as error:
        raise SourceError("unreadable_source", f"the file cannot be read: {error.strerror or error}") from error


def check_blank(count: int, line: int) -> None:
    """Raises `SourceError`."""
    if count > MAX_BLANK:
        raise SourceError("unreadable_source", f"more than {MAX_BLANK} blank lines in a row, up to line {line}")


def _head(file: IO[bytes]) -> bytes:
    head = file.read(HEAD)
    file.seek(0)
    return head


class Lines:
    """Lines of `file` from a position on; of one that is too long, its beginning."""

    def __init__(self, file: IO[bytes], at: Position) -> None:
        self._file = file
        self._line, self._offset = at
        self.too_long = False
        """Whether the line read last was longer than MAX_LINE bytes."""
        file.seek(at.offset)

    @property
    def position(self) -> Position:
        return Position(self._line, self._offset)

    def read(self) -> bytes:
        """The next line with its end, without a byte-order mark; empty at the end of the file."""
        raw = self._file.readline(MAX_LINE)
        self._offset += len(raw)
        self.too_long = len(raw) == MAX_LINE and not raw.endswith(b"\n")
        if self.too_long:
            self._skip_rest()
        if raw:
            self._line += 1
        return raw.removeprefix(BOM) if self._line == 1 else raw

    def _skip_rest(self) -> None:
        part = b"more"
        while part and not part.endswith(b"\n"):
            part = self._file.readline(MAX_LINE)
            self._offset += len(part)
