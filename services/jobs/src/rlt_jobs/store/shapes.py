"""What a row of a version looks like to whoever trains on it: columns in, columns out, no row a Python object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from rlt_client.errors import Conflict
from rlt_client.formats import StudentFormat, load_formats
from rlt_client.prompts import fill
from rlt_client.schemas.builds import ExportShape
from rlt_jobs.store.files import Damaged
from rlt_jobs.store.traces import COMPACT, MANIFEST

__all__ = ["SCHEMAS", "Shape", "student_format"]

Texts = Any
"""An Arrow array of strings: the stubs know no kernel that takes several kinds."""
Chat = dict[str, Texts]
"""What system, user and assistant say, by role: an array each, of as many texts as there are rows."""

_CHAT_COLUMNS: Final = ("question", "answer", "system", "explanation")
_CHATML: Final = ("role", "content")
_SHAREGPT: Final = ("from", "value")
_SHAREGPT_ROLES: Final = {"system": "system", "user": "human", "assistant": "gpt"}


def _turns(names: tuple[str, str]) -> Any:
    return pa.list_(pa.struct([pa.field(name, pa.string(), nullable=False) for name in names]))


def _chat_schema(names: tuple[str, str], *columns: str) -> pa.Schema:
    return pa.schema([pa.field(column, _turns(names), nullable=False) for column in columns])


_HIDDEN = {"file_id", "row", "question_hash", "request_key", "token_ids", "logprobs"}
_RAW = {field.name: field for schema in (COMPACT, MANIFEST) for field in schema if field.name not in _HIDDEN}
_FIRST = ("build_id", "problem", "sample_idx", "rank", "question", "answer", "system", "explanation", "completion")
SCHEMAS: dict[ExportShape, pa.Schema] = {
    ExportShape.messages: _chat_schema(_CHATML, "messages"),
    ExportShape.prompt_completion: _chat_schema(_CHATML, "prompt", "completion"),
    ExportShape.sharegpt: _chat_schema(_SHAREGPT, "conversations"),
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


class Shape:
    """Turns joined rows (manifest and trace) into those of an export.

    Args:
        student: how the student's format puts a problem and its explanation; None with shape `raw`.
    """

    def __init__(self, shape: ExportShape, student: StudentFormat | None) -> None:
        self.name = shape
        self.schema = SCHEMAS[shape]
        self.columns: Sequence[str] = self.schema.names if student is None else _CHAT_COLUMNS
        self._student = student

    def of(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows that have at least `columns`. Raises `Damaged` where a trace has no explanation."""
        if self._student is None:
            return rows.select(self.schema.names)
        chat = _chat(rows, self._student)
        return pa.RecordBatch.from_arrays(list(_SHAPED[self.name](chat)), schema=self.schema)


def _chat(rows: pa.RecordBatch, student: StudentFormat) -> Chat:
    """The assistant thinks the explanation and then gives the answer: what the student is scored on."""
    if rows["explanation"].null_count:
        raise Damaged("a row of the version has no explanation")
    system = _filled(student.system, rows)
    answer = _filled(student.answer, rows)
    return {
        "system": pc.coalesce(rows["system"], system),
        "user": _filled(student.user, rows),
        "assistant": _concatenated(student.open, rows["explanation"], student.close, answer),
    }


def _filled(template: str, rows: pa.RecordBatch) -> Texts:
    """One text for each row: the template with the row's question and answer in their places."""
    pieces = fill(template, question="question", answer="answer")
    parts = [rows[piece.name] if piece.content else piece.text for piece in pieces]
    return _concatenated(*parts) if any(piece.content for piece in pieces) else pa.repeat(template, rows.num_rows)


def _concatenated(*parts: Texts | str) -> Texts:
    pieces: list[Any] = [pa.scalar(part) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*pieces, "")


def _messages(chat: Chat) -> Iterator[Texts]:
    yield _said(chat, _CHATML)


def _prompt_completion(chat: Chat) -> Iterator[Texts]:
    yield _said({role: chat[role] for role in ("system", "user")}, _CHATML)
    yield _said({"assistant": chat["assistant"]}, _CHATML)


def _sharegpt(chat: Chat) -> Iterator[Texts]:
    yield _said({_SHAREGPT_ROLES[role]: texts for role, texts in chat.items()}, _SHAREGPT)


_SHAPED: Final[dict[ExportShape, Callable[[Chat], Iterator[Texts]]]] = {
    ExportShape.messages: _messages,
    ExportShape.prompt_completion: _prompt_completion,
    ExportShape.sharegpt: _sharegpt,
}


def _said(chat: Chat, names: tuple[str, str]) -> Texts:
    """Row by row what each role says, as a list of turns; who says nothing has none."""
    texts = list(chat.values())
    rows = len(texts[0])
    spoken = [pc.not_equal(each, pa.scalar("")).to_pylist() for each in texts]
    order = [role * rows + row for row in range(rows) for role in range(len(texts)) if spoken[role][row]]
    ends = accumulate((sum(flags) for flags in zip(*spoken, strict=True)), initial=0)
    roles = pa.array([place // rows for place in order], pa.int32())
    turns = [pa.array(list(chat)).take(roles), pa.concat_arrays(texts).take(pa.array(order, pa.int64()))]
    kind = _turns(names)
    struct = pa.StructArray.from_arrays(turns, fields=list(kind.value_type))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), struct, type=kind)
