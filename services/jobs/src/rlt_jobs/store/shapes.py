"""What a row of a version looks like to whoever trains on it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rlt_client.errors import Conflict
from rlt_client.formats import StudentFormat, load_formats
from rlt_client.prompts import fill
from rlt_client.schemas.builds import ExportShape
from rlt_jobs.store.traces import COMPACT, MANIFEST

__all__ = ["SCHEMAS", "Shape", "messages", "student_format"]

_MESSAGE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
_HIDDEN = {"file_id", "row", "question_hash", "request_key", "token_ids", "logprobs"}
_RAW = {field.name: field for schema in (COMPACT, MANIFEST) for field in schema if field.name not in _HIDDEN}
_FIRST = ("build_id", "problem", "sample_idx", "rank", "question", "answer", "system", "explanation", "completion")
SCHEMAS: dict[ExportShape, pa.Schema] = {
    ExportShape.messages: pa.schema([pa.field("messages", pa.list_(_MESSAGE), nullable=False)]),
    ExportShape.raw: pa.schema([*(_RAW[name] for name in _FIRST), *(f for n, f in _RAW.items() if n not in _FIRST)]),
}


def student_format(lineage: dict[str, Any], folder: Any) -> StudentFormat:
    """The student's part of the format that a version was scored with.

    Raises:
        Conflict: neither the version nor this service knows that format.
    """
    wanted = lineage.get("format") or {}
    if wanted.get("student"):
        return StudentFormat.model_validate(wanted["student"])
    for known in load_formats(folder).values():
        if known.hash == wanted.get("hash"):
            return known.student
    raise Conflict(
        f"the format {wanted.get('name')} ({wanted.get('hash')}) is not known here: set RLT_JOBS_FORMATS, "
        "or export with shape=raw",
        type="unknown_format",
    )


def messages(row: dict[str, Any], student: StudentFormat) -> dict[str, Any]:
    """A chat in which the assistant thinks the explanation and then gives the answer: what the student is scored on."""
    question, answer = row["question"], row["answer"]
    system = row["system"] if row["system"] is not None else _filled(student.system, question=question)
    said = f"{student.open}{row['explanation']}{student.close}{_filled(student.answer, answer=answer)}"
    chat = [("system", system), ("user", _filled(student.user, question=question)), ("assistant", said)]
    return {"messages": [{"role": role, "content": content} for role, content in chat if content]}


def _filled(template: str, **values: str) -> str:
    return "".join(piece.text for piece in fill(template, **values))


class Shape:
    """Turns a joined row (manifest and trace) into one of an export."""

    def __init__(self, shape: ExportShape, student: StudentFormat | None) -> None:
        self.schema = SCHEMAS[shape]
        self._student = student

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._student is not None:
            return messages(row, self._student)
        return {name: row[name] for name in self.schema.names}
