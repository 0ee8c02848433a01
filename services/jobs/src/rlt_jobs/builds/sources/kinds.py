"""Which of the formats a file is: by what is said of it, by its name, by what it begins with."""

from __future__ import annotations

from typing import IO, Final

from rlt_client.errors import InvalidRequest
from rlt_client.schemas.builds import SourceFormat
from rlt_jobs.builds.sources.lines import GZIP, not_text

__all__ = ["check_end", "of_file", "of_upload"]

PARQUET_MAGIC: Final = b"PAR1"

_SUFFIXES: Final = {
    ".jsonl": SourceFormat.jsonl,
    ".ndjson": SourceFormat.jsonl,
    ".json": SourceFormat.jsonl,
    ".csv": SourceFormat.csv,
    ".parquet": SourceFormat.parquet,
    ".pq": SourceFormat.parquet,
}
_MEDIA_TYPES: Final = {
    "application/jsonl": SourceFormat.jsonl,
    "application/x-jsonlines": SourceFormat.jsonl,
    "application/x-ndjson": SourceFormat.jsonl,
    "application/ndjson": SourceFormat.jsonl,
    "text/csv": SourceFormat.csv,
    "application/csv": SourceFormat.csv,
    "application/vnd.apache.parquet": SourceFormat.parquet,
    "application/x-parquet": SourceFormat.parquet,
}


def _of_name(name: str) -> SourceFormat | None:
    plain = name.lower().removesuffix(".gz")
    return next((format for suffix, format in _SUFFIXES.items() if plain.endswith(suffix)), None)


def of_file(name: str, file: IO[bytes]) -> SourceFormat:
    """By content where that is sure, else by name; JSON lines where nothing tells. Leaves the file at its beginning."""
    head = file.read(len(PARQUET_MAGIC))
    file.seek(0)
    return SourceFormat.parquet if head == PARQUET_MAGIC else _of_name(name) or SourceFormat.jsonl


def of_upload(media_type: str, name: str | None, head: bytes) -> tuple[SourceFormat, str]:
    """The format of a body that begins with `head`, and the suffix that its file gets.

    Raises:
        InvalidRequest: it is none of the formats, or not the one that it is said to be.
    """
    said = _MEDIA_TYPES.get(media_type.partition(";")[0].strip().lower()) or _of_name(name or "")
    if head.startswith(PARQUET_MAGIC):
        return SourceFormat.parquet, ".parquet"
    if said is SourceFormat.parquet:
        raise _refusal("is no Parquet file: it does not begin with PAR1")
    format = said or SourceFormat.jsonl
    if head.startswith(GZIP):
        return format, f".{format.value}.gz"
    if why := not_text(head):
        raise _refusal(why)
    return format, f".{format.value}"


def check_end(format: SourceFormat, tail: bytes) -> None:
    """Raises `InvalidRequest` for a Parquet file that does not end as one."""
    if format is SourceFormat.parquet and not tail.endswith(PARQUET_MAGIC):
        raise _refusal("is cut off: a Parquet file ends with PAR1")


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest(f"the file {why}", type="unreadable_source")
