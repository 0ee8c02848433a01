"""Problems as prompts. TRL hands a rollout nothing but prompts: each is a key that finds its problem again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from rlt_client.prompts import Untokenizable
from rlt_trainer.config.sections import TextRole
from rlt_trainer.errors import BadData
from rlt_trainer.texts import Writer

__all__ = ["Problem", "Problems"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is explained or solved. `prompt_ids` has shape [P]."""

    question: str
    answer: str
    system: str | None
    prompt_ids: Sequence[int]


class Problems:
    """All problems of a run, by key, in the order of their rows.

    Args:
        rows: with question, answer and, perhaps, system.
        most_tokens: of a prompt; longer ones are left out and counted in `too_long`.

    Raises:
        BadData: a text that the vocabulary cannot represent, or no problem that fits.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], writer: Writer, role: TextRole, most_tokens: int) -> None:
        self._by_key: dict[str, Problem] = {}
        self.too_long = 0
        for number, row in enumerate(rows, 1):
            problem = _problem(row, number, writer, role)
            if len(problem.prompt_ids) > most_tokens:
                self.too_long += 1
            else:
                self._by_key[f"problem {number}"] = problem
        if not self._by_key:
            raise BadData(f"no problem has a prompt of at most {most_tokens} tokens")

    def __len__(self) -> int:
        return len(self._by_key)

    def __getitem__(self, key: str) -> Problem:
        return self._by_key[key]

    @property
    def dataset(self) -> Dataset:
        """What TRL draws from: one column of keys."""
        return Dataset.from_dict({"prompt": list(self._by_key)})


def _problem(row: Mapping[str, Any], number: int, writer: Writer, role: TextRole) -> Problem:
    question, answer, system = row["question"], row["answer"], row.get("system")
    try:
        return Problem(question, answer, system, writer.prompt(role, question, answer, system))
    except Untokenizable as error:
        raise BadData(f"row {number}: {error}") from error
