"""Small files that hold more than fits anywhere: refused in little time and memory, whatever they are packed in."""

from __future__ import annotations

import gzip
import resource
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_client.schemas.builds import BuildKind, Source, SourceFormat
from rlt_jobs.builds.sources import lines
from rlt_jobs.builds.sources.opening import Sources, Stored
from rlt_jobs.builds.sources.rows import START, Row, SourceError
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store

MIB = 2**20
MOST = 8 * MIB
Read = Callable[..., list[Row]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The rows of an upload, the first few if asked to."""
    settings = Settings(database_url="postgresql+psycopg://nowhere/x", max_upload_bytes=MOST, data_roots=[tmp_path])
    store = Store(tmp_path / "store")
    sources = Sources(settings, store)

    def rows(name: str, format: SourceFormat, *, first: int | None = None, upload: bool = True) -> list[Row]:
        if not upload:
            return list(islice(sources.rows(Source(path=name), BuildKind.generate, None, START), first))
        uri = f"uploads/{name}"
        with store.create(uri) as pending:
            pending.writer.write((tmp_path / name).read_bytes())
        given = Source(upload="00000000-0000-4000-8000-000000000000")
        return list(islice(sources.rows(given, BuildKind.generate, Stored(uri, format), START), first))

    return rows


def compressed(path: Path, piece: bytes, times: int, head: bytes = b"") -> None:
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(head)
        for _ in range(times):
            file.write(piece)


def grown() -> int:
    """Bytes of memory that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    ("name", "head"), [("x.jsonl.gz", b""), ("x.csv.gz", b"question,answer\n")], ids=["jsonl", "csv"]
)
def test_blank_lines_without_an_end(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: bytes
) -> None:
    monkeypatch.setattr(lines, "MAX_BLANK", 10_000)
    compressed(tmp_path / name, b"\n" * MIB, 8, head)
    assert (tmp_path / name).stat().st_size < 20_000
    with pytest.raises(SourceError, match="more than 10000 blank lines in a row") as caught:
        read(name, SourceFormat.csv if head else SourceFormat.jsonl)
    assert caught.value.type == "unreadable_source"


@pytest.mark.parametrize("piece", [b" " * MIB, b"x" * MIB, b'{"question": "%s", "answer": "A"}\n' % (b"Q" * 4096)])
def test_an_upload_holds_no_more_than_an_upload_may(read: Read, tmp_path: Path, piece: bytes) -> None:
    """Lines without an end, and rows without an end."""
    compressed(tmp_path / "x.jsonl.gz", piece, MOST // len(piece) + 2)
    with pytest.raises(SourceError, match=f"more than {MOST} bytes of text") as caught:
        read("x.jsonl.gz", SourceFormat.jsonl)
    assert caught.value.type == "too_much_text"


def test_what_is_within_the_limits_is_read(read: Read, tmp_path: Path) -> None:
    row = b'{"question": "Q", "answer": "A"}\n'
    compressed(tmp_path / "x.jsonl.gz", row + b"\n" * 1000, 100)
    assert len(read("x.jsonl.gz", SourceFormat.jsonl)) == 100


@pytest.mark.parametrize("nested", [False, True])
def test_one_text_in_every_row_of_parquet(read: Read, tmp_path: Path, nested: bool) -> None:
    """10 MiB of text a row, of which the file holds one: a batch of 256 rows would take 2.5 GiB."""
    rows, text = 2000, "x" * (10 * MIB)
    indices = pa.array([0] * rows, pa.int32())
    once: Any = pa.DictionaryArray.from_arrays(indices, pa.array([text]))
    if nested:
        once = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), once)
    table = pa.table({"question": ["Q"] * rows, "answer": ["A"] * rows, "note": once})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "x.parquet").stat().st_size < MIB
    before = grown()
    with pytest.raises(SourceError, match=f"more than {MOST} bytes of text"):
        read("x.parquet", SourceFormat.parquet)
    found = read("x.parquet", SourceFormat.parquet, first=3, upload=False)  # an operator's own file is read
    assert [len(str(row.values)) > 10 * MIB for row in found] == [True] * 3
    assert grown() - before < 400 * MIB


def test_a_row_of_parquet_that_no_line_could_be_is_a_bad_row(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlt_jobs.builds.sources.arrow.MAX_LINE", 1000)
    monkeypatch.setattr("rlt_jobs.builds.sources.arrow.PIECE_BYTES", 1500)
    table = pa.table({"question": ["Q", "Q" * 2000, "Q"], "answer": ["A"] * 3})
    pq.write_table(table, tmp_path / "x.parquet")
    rows = read("x.parquet", SourceFormat.parquet)
    assert [row.values is None for row in rows] == [False, True, False]
    assert rows[1].why == "the row is longer than 1000 bytes"
    assert [row.line for row in rows] == [1, 2, 3]
