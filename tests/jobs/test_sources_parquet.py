"""Parquet: any number of row groups, little memory, row numbers, and plain words for what is damaged."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_client.schemas.builds import BuildKind, Source
from rlt_jobs.builds.sources.opening import Sources
from rlt_jobs.builds.sources.rows import START, Position, Row, SourceError
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store

Read = Callable[..., list[Row]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    settings = Settings(database_url="postgresql+psycopg://nowhere/x", data_roots=[tmp_path])
    sources = Sources(settings, Store(tmp_path / "store"))

    def rows(at: Position = START, **source: Any) -> list[Row]:
        return list(sources.rows(Source(path="x.parquet", **source), BuildKind.generate, None, at))

    return rows


def write(path: Path, rows: int, group: int) -> None:
    table = pa.table({"question": [f"Q{i}" for i in range(rows)], "answer": ["A"] * rows})
    pq.write_table(table, path / "x.parquet", row_group_size=group)


@pytest.mark.parametrize("group", [1, 7, 300, 1000])
def test_rows_are_numbered_across_row_groups_and_read_on_from_any(read: Read, tmp_path: Path, group: int) -> None:
    write(tmp_path, 700, group)
    rows = read()
    assert [(row.line, (row.values or {})["question"]) for row in rows] == [(i + 1, f"Q{i}") for i in range(700)]
    for done in (1, 7, 256, 300, 511, 699, 700):
        assert read(rows[done - 1].end) == rows[done:]


def test_values_are_as_json_has_them(read: Read, tmp_path: Path) -> None:
    day = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "question": ["Q"],
            "answer": pa.array(["A"], pa.large_string()),
            "system": pa.array([None], pa.string()),
            "score": [float("nan")],
            "day": [day],
            "price": [decimal.Decimal("1.50")],
            "tags": [["a", "b"]],
            "image": [{"bytes": b"\x89PNG", "path": "x.png"}],
            "raw": [b"\xff"],
            "turns": [[{"role": "user", "n": 1}]],
            "kind": pa.array(["x"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    (row,) = read()
    assert row.values == {
        "question": "Q",
        "answer": "A",
        "system": None,
        "score": None,
        "day": "2026-01-02T00:00:00Z",
        "price": "1.50",
        "tags": ["a", "b"],
        "turns": [{"role": "user", "n": 1}],
        "kind": "x",
    }  # columns of bytes are left out


@pytest.mark.parametrize("cut", [4, 20, 500])
def test_a_truncated_file_is_told_in_words(read: Read, tmp_path: Path, cut: int) -> None:
    write(tmp_path, 700, 100)
    path = tmp_path / "x.parquet"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SourceError, match="not a whole Parquet file"):
        read()


def test_a_file_damaged_in_the_middle_gives_what_stands_before(read: Read, tmp_path: Path) -> None:
    write(tmp_path, 700, 100)
    path = tmp_path / "x.parquet"
    body = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(5).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    body[start : start + 60] = b"\xff" * 60
    path.write_bytes(bytes(body))
    with pytest.raises(SourceError, match="not a whole Parquet file"):
        read()


def test_columns_must_be_there_once(read: Read, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["Q"], "solution": ["A"]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"the columns are 'prompt', 'solution'"):
        read()
    assert len(read(columns={"question": "prompt", "answer": "solution"})) == 1
    twice = pa.Table.from_arrays([pa.array(["Q"])] * 3, ["question", "answer", "answer"])
    pq.write_table(twice, tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="there twice: 'answer'"):
        read()


def test_a_file_without_rows_is_no_error_of_its_own(read: Read, tmp_path: Path) -> None:
    write(tmp_path, 0, 1)
    assert read() == []


def test_a_value_that_cannot_be_read_spoils_its_row_alone(read: Read, tmp_path: Path) -> None:
    texts = pa.array([b"Q0", b"\xff", b"Q2"], pa.binary()).view(pa.string())
    times = pa.array([0, 0, 2**61], pa.timestamp("ms"))
    pq.write_table(pa.table({"question": texts, "answer": ["A"] * 3, "at": times}), tmp_path / "x.parquet")
    rows = read()
    assert [(row.line, row.values is not None) for row in rows] == [(1, True), (2, False), (3, False)]
    assert all("cannot be read" in row.why for row in rows[1:])


def test_of_very_many_columns_a_message_lists_some(read: Read, tmp_path: Path) -> None:
    pq.write_table(pa.table({f"c{i}": ["x"] for i in range(1000)}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"no column 'question'.* and 900 more"):
        read()
