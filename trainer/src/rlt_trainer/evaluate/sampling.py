"""What is asked of a model, what comes back, and which samples are there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rlt_trainer.errors import BadConfig, BadData

__all__ = ["Ask", "Finished", "Sample", "Sampler", "room", "seed_of"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One sample to be drawn. `prompt_ids` has shape [P]."""

    prompt_ids: Sequence[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What was written after a prompt, the format's end tag included."""

    text: str
    tokens: int
    truncated: bool
    """It was cut off: neither the end tag nor an end of text was written."""


class Sampler(Protocol):
    """Draws samples. Equal seeds give equal ones, whatever else is sampled with them."""

    @property
    def model(self) -> Mapping[str, str | None]:
        """What samples: for the record, and to tell one model from another."""
        ...

    def sample(self, asks: Sequence[Ask], have: Container[int], keep: Callable[[int, Sample], None]) -> None:
        """Draw each sample but those in `have`, and hand it over as soon as it is there, by its place in `asks`.

        Raises:
            BadData: a prompt leaves no room in the model's context.
            RLTError: the model cannot be asked.
        """
        ...


class Finished:
    """Samples in a file, a line each as soon as it is drawn, so that a killed evaluation goes on.

    Args:
        purpose: hash of everything that decides what the samples are.

    Raises:
        BadConfig: the file has those of something else.
    """

    def __init__(self, path: Path, purpose: str) -> None:
        self.samples: dict[int, Sample] = {}
        whole = self._read(path, purpose) if path.exists() else 0
        self._file = path.open("ab")
        self._file.truncate(whole)  # of a line that a killed process left unfinished
        if not whole:
            self._write({"purpose": purpose})

    def _read(self, path: Path, purpose: str) -> int:
        """How many bytes are whole lines."""
        lines = path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if lines and json.loads(lines[0])["purpose"] != purpose:
            raise BadConfig(
                f"{path} has samples of another evaluation (its model, problems or settings differ): "
                "want another `output`, or that file removed"
            )
        for line in lines[1:]:
            told = json.loads(line)
            place = told.pop("place")
            self.samples[place] = Sample(**told)
        return sum(map(len, lines))

    def keep(self, place: int, sample: Sample) -> None:
        self.samples[place] = sample
        self._write({"place": place, **asdict(sample)})

    def _write(self, told: dict[str, object]) -> None:
        self._file.write(json.dumps(told).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._file.close()


def seed_of(seed: int, problem: int, sample: int) -> int:
    """Another one for each sample, 63 bits."""
    digest = hashlib.sha256(f"{seed}/{problem}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def room(prompt_ids: Sequence[int], most: int, context: int | None) -> int:
    """Tokens that a sample may have: `most`, or what the context leaves.

    Raises:
        BadData: it leaves none.
    """
    left = most if context is None else min(most, context - len(prompt_ids))
    if left < 1:
        raise BadData(f"a prompt of {len(prompt_ids)} tokens leaves no room in the model's context of {context}")
    return left
