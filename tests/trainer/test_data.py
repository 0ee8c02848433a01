"""Rows out of every kind of file that people have; what cannot be trained on is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from rlt_trainer.config.sections import Data
from rlt_trainer.data import read_rows
from rlt_trainer.errors import BadData

ROWS = [{"question": f"Q {n}", "answer": f"{n}", "explanation": f"because {n}", "extra": n} for n in range(3)]
WANT = ("question", "answer", "explanation")
Write = Callable[[Sequence[dict[str, Any]]], Path]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def jsonl(rows: Sequence[dict[str, Any]]) -> Path:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return file

    return jsonl


def test_files_of_each_kind_and_folders_give_the_same_rows(write: Write, tmp_path: Path) -> None:
    rows = Dataset.from_list(ROWS)
    rows.to_csv(tmp_path / "rows.csv")
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict(train=rows).save_to_disk(tmp_path / "splits")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "hub" / "data" / "train-00000.parquet")
    paths = [write(ROWS), *(tmp_path / name for name in ("rows.csv", "rows.parquet", "saved", "splits", "hub"))]
    wanted = [{name: row[name] for name in WANT} for row in ROWS]
    assert [read_rows(Data(path=str(path)), want=WANT).to_list() for path in paths] == [wanted] * len(paths)


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
"""
"""The head of a data set's card, as many have it."""


def test_folders_of_one_name_and_folders_that_change_have_their_own_rows(tmp_path: Path) -> None:
    def exported(to: Path, question: str) -> list[str]:
        (to / "data").mkdir(parents=True, exist_ok=True)
        (to / "README.md").write_text(CARD)
        Dataset.from_list([{"question": question}]).to_parquet(to / "data" / "train-00000.parquet")
        return list(read_rows(Data(path=str(to)), want=["question"])["question"])

    one, other = tmp_path / "one" / "traces", tmp_path / "other" / "traces"
    assert exported(one, "first") == ["first"]
    assert exported(other, "second") == ["second"]
    assert exported(one, "third") == ["third"]


def test_columns_have_the_names_that_they_are_given(write: Write) -> None:
    file = write([{"question": "not this", "q": "this", "answer": "2"}])
    rows = read_rows(Data(path=str(file), columns={"question": "q"}), want=("question", "answer"))
    assert rows.to_list() == [{"question": "this", "answer": "2"}]


def test_a_limit_takes_the_first_and_what_may_be_there_comes_along(write: Write) -> None:
    file = write([{**row, "system": None} for row in ROWS])
    rows = read_rows(Data(path=str(file), limit=2), want=("question",), may=("system", "absent"))
    assert rows.to_list() == [{"question": "Q 0", "system": None}, {"question": "Q 1", "system": None}]


def test_whole_numbers_are_answers(write: Write) -> None:
    rows = read_rows(Data(path=str(write([{"question": "Q", "answer": 0}]))), want=("question", "answer"))
    assert rows["answer"][:] == ["0"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"question": "Q", "answer": "1"}], "no column explanation, but question, answer; `data.columns` says"),
        ([*ROWS, {**ROWS[0], "answer": ""}], "1 rows have no answer: row 4"),
        ([{**ROWS[0], "explanation": " \n"}, *ROWS], "1 rows have no explanation: row 1; .* --without-flag empty"),
        ([{**row, "answer": None} for row in ROWS * 2], r"6 rows have no answer: row 1, 2, 3, 4, 5 …"),
        ([{**ROWS[0], "answer": 0.5}], "column answer holds .*float64.*, where texts are wanted"),
        ([{**ROWS[0], "answer": ["1"]}], "column answer holds List.*, where texts are wanted"),
        ([], "cannot be read: it is empty"),
    ],
    ids=["column", "empty", "blank", "null", "float", "list", "none"],
)
def test_rows_that_cannot_be_trained_on_are_named(write: Write, rows: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(BadData, match=reason) as refused:
        read_rows(Data(path=str(write(rows))), want=WANT)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("{here}/absent", "does not exist"),
        ("absent.jsonl", "does not exist"),
        ("some/where/absent", "does not exist"),
        ("{here}/rows.txt", r"want a file that ends with \.jsonl"),
        ("{here}/broken.jsonl", "cannot be read: JSON parse error"),
        ("{here}/empty.jsonl", "cannot be read: it is empty"),
        ("{here}/broken.parquet", "cannot be read"),
        ("{here}/empty", "cannot be read"),
        ("nobody/nothing", "cannot be read"),
    ],
)
def test_places_that_hold_no_rows_are_named(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("rows.txt", "broken.jsonl", "broken.parquet"):
        (tmp_path / file).write_text("{not json")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(BadData, match=reason) as refused:
        read_rows(Data(path=name.format(here=tmp_path)), want=WANT)
    assert "\n" not in str(refused.value)


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    DatasetDict(test=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    with pytest.raises(BadData, match="no split 'train', but test"):
        read_rows(Data(path=str(tmp_path / "splits")), want=WANT)


def test_a_column_that_is_renamed_must_be_there(write: Write) -> None:
    with pytest.raises(BadData, match=r"no column 'q' \(for question\), but question, answer"):
        read_rows(Data(path=str(write(ROWS)), columns={"question": "q"}), want=WANT)
