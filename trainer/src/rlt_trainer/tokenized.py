"""Rows as token ids on the disk: a million traces are written once, in batches, and never held in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from datasets import Dataset, Features, List, Value

from rlt_client.prompts import TextCodec, Untokenizable
from rlt_trainer.chats import ChatWriter, turns_of
from rlt_trainer.config.distill import TraceShape
from rlt_trainer.config.sections import Data, Model, TextRole, Texts, TooLong
from rlt_trainer.data import read_rows
from rlt_trainer.errors import BadData
from rlt_trainer.models import load_codec
from rlt_trainer.texts import Example, Writer, named_format
from rlt_trainer.tiny.folders import content_hash

__all__ = ["Tokenizing", "tokenized"]

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
_COLUMNS: Final[dict[TraceShape, tuple[str, ...]]] = {
    TraceShape.raw: ("question", "answer", "explanation"),
    TraceShape.messages: ("messages",),
    TraceShape.prompt_completion: ("prompt", "completion"),
    TraceShape.sharegpt: ("conversations",),
}
_FEATURES: Final = Features(
    {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "was_cut": Value("bool")}
)
_AT_ONCE: Final = 100
"""Rows of a batch: at 16k tokens each some hundred megabytes as Python's numbers."""
_PER_WORKER: Final = 5000
"""Rows below which another process costs more than it saves."""


@dataclass(frozen=True)
class Tokenizing:
    """Turns batches of rows into examples. It is sent to other processes by its settings alone.

    Args:
        roles: each row of shape `raw` becomes a text of each.
    """

    model: Model
    texts: Texts
    shape: TraceShape
    roles: tuple[TextRole, ...]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @cached_property
    def codec(self) -> TextCodec:
        return load_codec(self.model)

    @property
    def texts_of_a_row(self) -> int:
        return len(self.roles) if self.shape is TraceShape.raw else 1

    @cached_property
    def _written(self) -> Callable[[Row], list[Example]]:
        if self.shape is not TraceShape.raw:
            chats = ChatWriter(self.codec)
            return lambda row: [chats.example(turns_of(row, self.shape))]
        writer, roles = self._writer, self.roles

        def texts(row: Row) -> list[Example]:
            told = (row["question"], row["answer"], row["explanation"], row.get("system"))
            return [writer.text(role, *told).example for role in roles]

        return texts

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self.codec, named_format(self.texts.format, self.texts.formats))

    def identity(self) -> bytes:
        """Changes with everything that shapes an example but the rows."""
        format = self._writer.format.hash if self.shape is TraceShape.raw else self.codec.tokenizer.chat_template
        told = (format, self.shape, self.roles, self.texts.max_tokens, self.texts.too_long, self.codec.eos_token_id)
        return f"{told}{self.codec.tokenizer.backend_tokenizer.to_str()}".encode()

    def __call__(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        """One batch, as `Dataset.map` hands it on. Raises `BadData` with the row's number."""
        made: list[tuple[Example, bool]] = []
        for place, number in enumerate(numbers):
            row = {name: values[place] for name, values in rows.items()}
            try:
                made += [kept for example in self._written(row) if (kept := self._fitted(example))]
            except (BadData, Untokenizable) as error:
                raise BadData(f"row {number + 1}: {error}") from error
        return {
            "input_ids": [example.input_ids for example, _ in made],
            "labels": [example.labels for example, _ in made],
            "was_cut": [was_cut for _, was_cut in made],
        }

    def _fitted(self, example: Example) -> tuple[Example, bool] | None:
        """(what fits the context, whether it was cut); None for what is dropped."""
        most = self.texts.max_tokens
        if len(example) <= most:
            return example, False
        if self.texts.too_long is TooLong.error:
            raise BadData(f"{len(example)} tokens, where texts.max_tokens is {most}")
        short = example.cut(most)
        return (short, True) if self.texts.too_long is TooLong.truncate and short.teaches else None


def tokenized(data: Data, tokenizing: Tokenizing, folder: Path) -> Dataset:
    """Examples of the rows, with the columns `input_ids` and `labels`; how many were dropped or cut is told.

    Args:
        folder: where they are kept, under a name of their content; those that are there already are taken.

    Raises:
        BadConfig, BadData, FormatError, UnusableTokenizer
    """
    may = ("system",) if tokenizing.shape is TraceShape.raw else ()
    rows = read_rows(data, want=_COLUMNS[tokenizing.shape], may=may)
    key = content_hash(rows._fingerprint.encode(), tokenizing.identity())
    folder.mkdir(parents=True, exist_ok=True)
    made = rows.map(
        tokenizing,
        batched=True,
        batch_size=_AT_ONCE,
        writer_batch_size=_AT_ONCE,
        with_indices=True,
        remove_columns=rows.column_names,
        features=_FEATURES,
        num_proc=_workers(len(rows)),
        new_fingerprint=key,
        cache_file_name=str(folder / f"{key}.arrow"),
        desc="Tokens",
    )
    _tell(made, len(rows) * tokenizing.texts_of_a_row, tokenizing.texts, data.path)
    return made.select_columns(["input_ids", "labels"])


def _workers(rows: int) -> int | None:
    return min(len(os.sched_getaffinity(0)), rows // _PER_WORKER) or None


def _tell(made: Dataset, wanted: int, texts: Texts, path: str) -> None:
    if not len(made):
        raise BadData(f"{path}: no text of at most {texts.max_tokens} tokens")
    if dropped := wanted - len(made):
        log.warning("%d of %d texts are over %d tokens and are left out", dropped, wanted, texts.max_tokens)
    cut = sum(sum(batch["was_cut"]) for batch in made.select_columns(["was_cut"]).iter(10_000))
    if cut:
        log.warning("%d of %d texts were cut to %d tokens: their end is not learned", cut, wanted, texts.max_tokens)
