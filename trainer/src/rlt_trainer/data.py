"""Rows out of files, exported folders and the hub, under the names that this package uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from rlt_trainer.config.sections import Data
from rlt_trainer.errors import BadData

__all__ = ["read_rows"]

_FILES: Final = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_SHOWN: Final = 5  # bad rows that an error names


def read_rows(data: Data, *, want: Sequence[str], may: Sequence[str] = ()) -> Dataset:
    """The rows with the columns `want`, and those of `may` that are there, under these names.

    Raises:
        BadData: nothing can be read there, a column is missing, or a row lacks a text of `want`.
    """
    rows = _opened(data)
    for ours, theirs in data.columns.items():
        if theirs not in rows.column_names:
            raise BadData(f"{data.path} has no column {theirs!r} (for {ours}), but {', '.join(rows.column_names)}")
        if theirs != ours:
            rows = rows.remove_columns([ours]) if ours in rows.column_names else rows
            rows = rows.rename_column(theirs, ours)
    if missing := [name for name in want if name not in rows.column_names]:
        raise BadData(
            f"{data.path} has no column {', '.join(missing)}, but {', '.join(rows.column_names)}; `data.columns` says "
            "which column is which"
        )
    rows = rows.select_columns([name for name in (*want, *may) if name in rows.column_names])
    if data.limit is not None:
        rows = rows.select(range(min(data.limit, len(rows))))
    _refuse_empty(rows, want, data.path)
    return rows


def _opened(data: Data) -> Dataset:
    path = Path(data.path)
    try:
        if path.is_file():
            kind = _FILES.get(path.suffix.lower())
            if kind is None:
                raise BadData(f"{path}: want a file that ends with {', '.join(_FILES)}")
            return load_dataset(kind, data_files=str(path), split="train")
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return _split(load_from_disk(str(path)), data)
        if path.is_absolute() and not path.is_dir():
            raise BadData(f"{path} does not exist")
        return load_dataset(data.path, split=data.split, revision=data.revision)
    except BadData:
        raise
    except Exception as error:  # datasets raises whatever its readers and the hub raise
        raise BadData(f"{data.path} cannot be read: {error}") from error


def _split(loaded: Dataset | DatasetDict, data: Data) -> Dataset:
    if isinstance(loaded, Dataset):
        return loaded
    if data.split not in loaded:
        raise BadData(f"{data.path} has no split {data.split!r}, but {', '.join(loaded)}")
    return loaded[data.split]


def _refuse_empty(rows: Dataset, want: Sequence[str], path: str) -> None:
    if not len(rows):
        raise BadData(f"{path} has no rows")
    for name in want:
        bad = [number for number, value in enumerate(_values(rows, name), 1) if not value]
        if bad:
            shown = ", ".join(map(str, bad[:_SHOWN]))
            raise BadData(f"{path}: {len(bad)} rows have no {name}: row {shown}{' …' if len(bad) > _SHOWN else ''}")


def _values(rows: Dataset, name: str) -> Iterable[Any]:
    for batch in rows.select_columns([name]).iter(10_000):
        yield from batch[name]
