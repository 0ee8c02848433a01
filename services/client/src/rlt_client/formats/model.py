"""What a format file may say, and reading it."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlt_client.errors import RLTError
from rlt_client.formats.leaks import Leaks
from rlt_client.schemas.common import FormatRef

PLACEHOLDER = re.compile(r"\{(question|answer)\}")


class FormatError(RLTError):
    """A format file that cannot be read or that breaks a rule, or a text that is not of the format."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherFormat(_Part):
    """The teacher's prompt: chat messages, then an assistant turn that is already begun (`prefill`)."""

    system: str = ""
    user: str = "{question}"
    prefill: str = Field(description="begins the assistant turn; carries the answer and opens the explanation")
    held: str = Field(default="", description="the end of `prefill` that belongs to the explanation")
    close: str = Field(min_length=1, description="ends the explanation")

    @model_validator(mode="after")
    def _holds(self) -> Self:
        if not self.prefill.endswith(self.held):
            raise ValueError("teacher.prefill must end with teacher.held")
        if "{answer}" not in self.system + self.user + self.prefill:
            raise ValueError("the teacher must be shown {answer}")
        if PLACEHOLDER.search(self.close + self.held):
            raise ValueError("teacher.close and teacher.held take no placeholder")
        return self


class StudentFormat(_Part):
    """What the student reads: chat messages, its thoughts (the explanation) and only then the answer."""

    system: str = ""
    user: str = "{question}"
    open: str = ""
    close: str
    answer: str = Field(description="follows `close`; {answer} stands in it once")

    @model_validator(mode="after")
    def _answer_only_at_the_end(self) -> Self:
        if "{answer}" in self.system + self.user + self.open + self.close:
            raise ValueError("{answer} may stand in student.answer and nowhere else on the student's side")
        if self.answer.count("{answer}") != 1:
            raise ValueError("student.answer must hold {answer} exactly once")
        if "{question}" in self.open + self.close + self.answer:
            raise ValueError("{question} may stand in the system and user messages only")
        return self

    @property
    def before_answer(self) -> str:
        return self.answer.partition("{answer}")[0]

    @property
    def after_answer(self) -> str:
        return self.answer.partition("{answer}")[2]


class Probe(_Part):
    """The texts that prove a format/model pair at load; another set is needed only for tiny vocabularies."""

    question: str = "How many sides do three squares have?"
    explanation: str = "Each square has four sides, so I multiply three by four."
    answer: str = "Twelve sides."


class Format(_Part):
    """One prompt format (arXiv 2506.08388, the teacher's and the student's prompt)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    version: str
    chat: Literal["template", "none"] = Field(
        default="template", description="messages go through the model's chat template, or are joined raw"
    )
    teacher: TeacherFormat
    student: StudentFormat
    probe: Probe = Probe()
    leaks: Leaks = Field(
        default_factory=Leaks, description="how an explanation shows that the solution was given; not part of the hash"
    )

    @cached_property
    def hash(self) -> str:
        """Content hash: 16 hexadecimal digits over everything that shapes a prompt."""
        shape = self.model_dump(mode="json", exclude={"name", "version", "probe", "leaks"})
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def ref(self) -> FormatRef:
        return FormatRef(name=self.name, version=self.version, hash=self.hash)

    @cached_property
    def delimiters(self) -> tuple[str, ...]:
        """The tags that an explanation has no business to spell, each on its own where several stand together."""
        teacher, student = self.teacher, self.student
        opened = PLACEHOLDER.split(teacher.prefill)[-1]
        texts = [teacher.close, opened, student.open, student.close, student.before_answer, student.after_answer]
        lines = [line.strip() for text in texts for line in text.splitlines()]
        return tuple(dict.fromkeys(line for line in lines if line))

    def parse(self, text: str) -> tuple[str, str]:
        """The explanation and the answer of a student-side text (`open` t `close` `answer`), to import tagged traces.

        Raises:
            FormatError: a tag is missing or stands in the wrong order.
        """
        student = self.student
        before, answer_open, answer_close = student.close.strip(), student.before_answer.strip(), student.after_answer
        _, opened, rest = text.partition(student.open.strip()) if student.open.strip() else ("", " ", text)
        if not opened:
            raise FormatError(f"no {student.open.strip()!r} in the text")
        explanation, closed, rest = rest.partition(before)
        if not closed:
            raise FormatError(f"no {before!r} after the explanation")
        if answer_open:
            _, found, rest = rest.partition(answer_open)
            if not found:
                raise FormatError(f"no {answer_open!r} after the explanation")
        if answer_close.strip():
            rest, found, _ = rest.rpartition(answer_close.strip())
            if not found:
                raise FormatError(f"no {answer_close.strip()!r} after the answer")
        if not rest.strip():
            raise FormatError("the answer is empty")
        return explanation, rest.strip()


def load_format(path: Path) -> Format:
    """Read one TOML file. Raises `FormatError` naming the file and what is wrong in it."""
    try:
        return Format.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FormatError(f"{path}: {error}") from error
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'format'}: {e['msg']}" for e in error.errors())
        raise FormatError(f"{path}: {lines}") from error


def _load_folder(folder: Path) -> dict[str, Format]:
    formats: dict[str, Format] = {}
    for path in sorted(folder.glob("*.toml")):
        loaded = load_format(path)
        if loaded.name in formats:
            raise FormatError(f"{path}: another file of this folder has the name {loaded.name!r} too")
        formats[loaded.name] = loaded
    return formats


def shipped_formats() -> dict[str, Format]:
    with resources.as_file(resources.files("rlt_client.formats")) as folder:
        return _load_folder(folder)


def load_formats(folder: Path | None = None) -> dict[str, Format]:
    """The shipped formats by name, and those of `folder`, which go before shipped ones of the same name.

    Raises:
        FormatError: the folder does not exist, holds no TOML file, or a file of it is not a format.
    """
    formats = shipped_formats()
    if folder is not None:
        if not folder.is_dir():
            raise FormatError(f"{folder}: no such folder of formats")
        own = _load_folder(folder)
        if not own:
            raise FormatError(f"{folder}: no *.toml in this folder")
        formats |= own
    return formats
