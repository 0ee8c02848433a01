"""JSON lines and CSV: every row has its true line, reading goes on where it stopped, other files are named."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlt_client.errors import InvalidRequest
from rlt_client.schemas.builds import BuildKind, Source, SourceFormat
from rlt_jobs.builds.sources import kinds, lines
from rlt_jobs.builds.sources.opening import Sources
from rlt_jobs.builds.sources.rows import START, Position, Row, SourceError
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store

Read = Callable[..., list[Row]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The rows of a file of these bytes and this name."""
    settings = Settings(database_url="postgresql+psycopg://nowhere/x", data_roots=[tmp_path])
    sources = Sources(settings, Store(tmp_path / "store"))

    def rows(name: str, body: bytes, at: Position = START, kind: str = "generate", **source: Any) -> list[Row]:
        (tmp_path / name).write_bytes(body)
        return list(sources.rows(Source(path=name, **source), BuildKind(kind), None, at))

    return rows


def brief(rows: list[Row]) -> list[tuple[int, Any]]:
    return [(row.line, row.values if row.values is not None else row.why) for row in rows]


def test_csv_rows_have_the_line_in_which_they_begin(read: Read) -> None:
    body = b'\xef\xbb\xbfquestion,answer,level\r\n"two\nlines","a ""quoted"", thing",\r\n\r\nQ2,A2,3\r\n'
    assert brief(read("x.csv", body)) == [
        (2, {"question": "two\nlines", "answer": 'a "quoted", thing'}),  # an empty field is no value
        (5, {"question": "Q2", "answer": "A2", "level": "3"}),
    ]


def test_bad_rows_of_csv_say_what_is_wrong(read: Read) -> None:
    body = b'question,answer\nQ1\nQ2,A2,more\n"Q3"x,A3\n\xff,A4\nQ5,A5\n"never\nclosed,A6\n'
    rows = brief(read("x.csv", body))
    assert [line for line, _ in rows] == [2, 3, 4, 5, 6, 7]
    told = dict(rows)
    assert told[2] == "has 1 fields, and the header has 2"
    assert told[3] == "has 3 fields, and the header has 2"
    assert told[4].startswith("not CSV: ")
    assert told[5] == "not CSV: not UTF-8: invalid start byte at byte 0 of the line"
    assert told[6] == {"question": "Q5", "answer": "A5"}
    assert told[7] == "not CSV: unexpected end of data (lines 7 to 8)"


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.csv.gz", "x.jsonl.gz"])
def test_reading_goes_on_after_any_row(read: Read, name: str) -> None:
    table = [{"question": f'Q{i}\n"é', "answer": "A" * (i % 7)} for i in range(40)]
    if ".csv" in name:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["question", "answer"])
        writer.writeheader()
        writer.writerows(table)
        body = text.getvalue().encode()
    else:
        body = b"".join(json.dumps(row).encode() + b"\n\n" for row in table)
    body = gzip.compress(body) if name.endswith(".gz") else body
    rows = read(name, body)
    assert len(rows) == 40
    for index in (0, 1, 17, 38, 39):
        assert read(name, body, rows[index].end) == rows[index + 1 :]


def test_a_line_without_end_does_not_fill_the_memory(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 64)
    long = b'{"question": "' + b"Q" * 500 + b'"}\n{"question": "Q0"}\n'
    assert brief(read("x.jsonl", long)) == [(1, "the line is longer than 64 bytes"), (2, {"question": "Q0"})]
    long = b"question,answer\n" + b"Q" * 500 + b",A\nQ,A\n"
    (first, second) = brief(read("x.csv", long))
    assert (first[0], "longer than 64 bytes" in first[1]) == (2, True)
    assert second == (3, {"question": "Q", "answer": "A"})


def test_an_unclosed_quote_does_not_fill_the_memory(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 64)
    body = b'question,answer\n"Q' + b"line\n" * 30 + b"Q,A\n"
    rows = read("x.csv", body)
    assert "a row is longer than 64 bytes: is a quote not closed?" in rows[0].why
    assert rows[-1].values == {"question": "Q", "answer": "A"}


def test_a_row_of_endless_fields_does_not_fill_the_memory(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 64)
    rows = read("x.csv", b'question,answer\n"' + b'field\n","' * 12 + b"x\nQ,A\n")
    assert "a row is longer than 64 bytes" in rows[0].why
    assert rows[-1].values == {"question": "Q", "answer": "A"}


def test_a_header_of_very_many_columns_is_refused_at_once(read: Read) -> None:
    with pytest.raises(SourceError, match=r"twice: 'a'$"):
        read("x.csv", ",".join(["a", "a", *map(str, range(100_000))]).encode())


@pytest.mark.parametrize(
    ("name", "body", "type", "says"),
    [
        ("x.csv", b"", "empty_source", "empty"),
        ("x.jsonl.gz", gzip.compress(b""), "empty_source", "empty"),
        ("x.csv", b"\n\n", "empty_source", "no header"),
        ("x.csv", b"question,answer,question\nQ,A,R\n", "duplicate_columns", "'question'"),
        ("x.csv", b"prompt;solution\nQ;A\n", "missing_columns", "'question' (for question), 'answer' (for answer)"),
        ("x.csv", b"question\nQ\n", "missing_columns", "the columns are 'question'"),
        ("x.csv", b'"question,answer\n', "bad_header", "header"),
        ("x.csv", "question,answer\n".encode("utf-16"), "unreadable_source", "UTF-16"),
        ("x.jsonl", '{"question"'.encode("utf-16-le"), "unreadable_source", "perhaps UTF-16"),
        ("x.jsonl", b"PK\x03\x04zip", "unreadable_source", "zip archive"),
        ("x.csv", b"\x28\xb5\x2f\xfdzstd", "unreadable_source", "zstd"),
        ("x.csv.gz", gzip.compress(b"question,answer\nQ,A\n" * 999)[:-20], "unreadable_source", "not a whole gzip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip writes the time into its bytes
)
def test_files_that_cannot_be_used_are_told_in_words(read: Read, name: str, body: bytes, type: str, says: str) -> None:
    with pytest.raises(SourceError) as refused:
        read(name, body)
    assert refused.value.type == type
    assert says in str(refused.value)


def test_a_column_that_is_named_must_be_there(read: Read) -> None:
    body = b"question,answer\nQ,A\n"
    with pytest.raises(SourceError, match="'sys'"):
        read("x.csv", body, columns={"system": "sys"})
    assert read("x.csv", b"prompt,answer\nQ,A\n", columns={"question": "prompt"})[0].values == {
        "prompt": "Q",
        "answer": "A",
    }
    with pytest.raises(SourceError, match=r"'explanation' \(for explanation\)"):
        read("x.csv", body, kind="score")
    assert len(read("x.csv", b"question,explanation\nQ,<think>E</think>A\n", kind="score")) == 1


def test_a_format_that_is_named_goes_before_the_name(read: Read) -> None:
    assert read("x.txt", b"question,answer\nQ,A\n", format="csv")[0].values == {"question": "Q", "answer": "A"}


@pytest.mark.parametrize(
    ("media_type", "name", "head", "format", "suffix"),
    [
        ("", None, b'{"question"', "jsonl", ".jsonl"),
        ("application/octet-stream", "problems.CSV", b"question", "csv", ".csv"),
        ("text/csv; charset=utf-8", "problems.jsonl", b"question", "csv", ".csv"),
        ("application/x-ndjson", None, b"{", "jsonl", ".jsonl"),
        ("text/csv", "x.csv", b"PAR1\x15", "parquet", ".parquet"),
        ("", "x.csv.gz", b"\x1f\x8b\x08\x00", "csv", ".csv.gz"),
        ("", None, b"\x1f\x8b\x08\x00", "jsonl", ".jsonl.gz"),
    ],
)
def test_an_upload_is_what_it_holds_or_is_said_to_be(
    media_type: str, name: str | None, head: bytes, format: str, suffix: str
) -> None:
    assert kinds.of_upload(media_type, name, head) == (SourceFormat(format), suffix)


@pytest.mark.parametrize(
    ("media_type", "head", "says"),
    [
        ("application/vnd.apache.parquet", b"PAR2", "does not begin with PAR1"),
        ("text/csv", b"\xff\xfeq\0", "UTF-16"),
        ("", b"PK\x03\x04", "zip"),
    ],
)
def test_an_upload_of_another_kind_is_refused_at_once(media_type: str, head: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        kinds.of_upload(media_type, None, head)


def test_paths_lead_nowhere_else(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "secret.jsonl"
    root.mkdir()
    outside.write_text("{}")
    (root / "link.jsonl").symlink_to(outside)
    url = "postgresql+psycopg://nowhere/x"
    sources = Sources(Settings(database_url=url, data_roots=[root]), Store(tmp_path / "store"))
    for path in ("../secret.jsonl", str(outside), "link.jsonl", "file:///etc/passwd", "~/x"):
        with pytest.raises(InvalidRequest) as refused:
            sources.check(Source(path=path))
        assert refused.value.type == "path_not_allowed"
    with pytest.raises(InvalidRequest, match="is a folder"):
        sources.check(Source(path=str(root)))
    with pytest.raises(InvalidRequest, match="no folders that builds may read"):
        Sources(Settings(database_url=url), Store(tmp_path / "store")).check(Source(path=str(root)))
