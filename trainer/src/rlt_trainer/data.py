"""Rows out of files, exported folders and the hub, under the names that this package uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import datasets.config
import pyarrow as pa
from datasets import Dataset, DatasetDict, Value, load_dataset, load_from_disk

from rlt_trainer.config.sections import Data
from rlt_trainer.errors import BadData
from rlt_trainer.tiny.folders import content_hash

__all__ = ["read_rows"]

_FILES: Final = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_SHOWN: Final = 5  # bad rows that an error names
_HINTS: Final = {
    "explanation": "; builds, and `rlt build rerank`, leave them out of a version with --without-flag empty"
}
_TEXTS: Final = ("question", "answer", "explanation", "system")
"""Columns of text; others hold chats."""


def read_rows(data: Data, *, want: Sequence[str], may: Sequence[str] = ()) -> Dataset:
    """The rows with the columns `want`, and those of `may` that are there, under these names.

    Raises:
        BadData: nothing can be read there, a column is missing or holds no texts, or a row lacks one of `want`.
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
    rows = _as_texts(rows, data.path)
    _refuse_empty(rows, want, data.path)
    return rows


def _as_texts(rows: Dataset, path: str) -> Dataset:
    """Whole numbers, as CSV and JSON hold many an answer, are texts too."""
    for name in (name for name in _TEXTS if name in rows.column_names):
        kind = getattr(rows.features[name], "pa_type", None)
        if kind is not None and pa.types.is_integer(kind):
            rows = rows.cast_column(name, Value("string"))
        elif kind is None or not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, _is_null)):
            raise BadData(f"{path}: column {name} holds {rows.features[name]}, where texts are wanted")
    return rows


def _is_null(kind: pa.DataType) -> bool:
    return kind == pa.null()


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
        if not path.is_dir() and (path.is_absolute() or path.suffix.lower() in _FILES or data.path.count("/") > 1):
            raise BadData(f"{path} does not exist")  # and is no name on the hub
        kept = _kept_apart(path) if path.is_dir() else None
        return load_dataset(data.path, split=data.split, revision=data.revision, cache_dir=kept)
    except BadData:
        raise
    except Exception as error:  # datasets raises whatever its readers and the hub raise
        raise BadData(f"{data.path} cannot be read: {str(error.__cause__ or error) or 'it is empty'}") from error


def _kept_apart(folder: Path) -> str:
    """Where `datasets` 5.2 keeps the rows of a folder. Left alone, it goes by the last part of the folder's name where
    a card describes the files, as in exports, and gives the rows of whatever folder was called so before."""
    files = sorted(path for path in folder.resolve().rglob("*") if path.is_file())
    told = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"folder-{content_hash(*map(str.encode, told))}")


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
        bad = [number for number, value in enumerate(_values(rows, name), 1) if _empty(value)]
        if bad:
            shown = ", ".join(map(str, bad[:_SHOWN]))
            more = " …" if len(bad) > _SHOWN else ""
            raise BadData(f"{path}: {len(bad)} rows have no {name}: row {shown}{more}{_HINTS.get(name, '')}")


def _empty(value: Any) -> bool:
    return not (value.strip() if isinstance(value, str) else value)


def _values(rows: Dataset, name: str) -> Iterable[Any]:
    for batch in rows.select_columns([name]).iter(10_000):
        yield from batch[name]
