"""Problems, with a request or in a source."""

from __future__ import annotations

from typing import Any, Self
from uuid import UUID

from pydantic import Field, field_validator, model_validator

from rlt_client.schemas.builds.kinds import SourceFormat
from rlt_client.schemas.builds.texts import Storable, storable, storable_json
from rlt_client.schemas.common import Request

__all__ = ["BuildProblem", "HubSource", "Source"]


class BuildProblem(Request):
    """One question with its ground-truth answer."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1, description="the ground-truth solution, without tags")
    system: str | None = Field(default=None, description="overrides the format's system message of the student")
    explanation: str | None = Field(default=None, description="kind `score`: the text to score")
    meta: dict[str, Any] | None = Field(default=None, description="kept with the problem, not read")

    @field_validator("question", "answer", "system", "explanation")
    @classmethod
    def _storable(cls, text: str | None) -> str | None:
        return None if text is None else storable(text)

    @field_validator("meta")
    @classmethod
    def _storable_meta(cls, meta: dict[str, Any] | None) -> dict[str, Any] | None:
        storable_json(meta)
        return meta

    @field_validator("question", "answer")
    @classmethod
    def _not_blank(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("holds white space only")
        return text


class HubSource(Request):
    """A data set of the Hugging Face hub, or a folder that `datasets.load_dataset` reads."""

    name: str = Field(min_length=1, max_length=500, description="such as `open-thoughts/OpenThoughts-114k`")
    config: Storable | None = Field(default=None, max_length=200)
    split: Storable = Field(default="train", min_length=1, max_length=200)
    revision: Storable | None = Field(
        default=None, max_length=200, description="branch, tag or commit; the newest without"
    )


class Source(Request):
    """Where problems are read from: exactly one of `upload`, `path` and `hub`. A row has `question` and `answer`.

    `system` and `explanation` are read where present; all other fields are kept as the problem's `meta`.
    """

    upload: UUID | None = Field(default=None, description="id of `POST /uploads`")
    path: str | None = Field(
        default=None, min_length=1, max_length=4_096, description="a file inside the folders that the service may read"
    )
    hub: HubSource | None = None
    format: SourceFormat | None = Field(default=None, description="of upload or path; told by name or content without")
    columns: dict[str, Storable] = Field(
        default_factory=dict, description="names in the file by name here: {'question': 'prompt', 'answer': 'solution'}"
    )
    limit: int | None = Field(default=None, ge=1, lt=2**63, description="read so many rows at most")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.upload, self.path, self.hub)) != 1:
            raise ValueError("give exactly one of upload, path and hub")
        if self.hub is not None and self.format is not None:
            raise ValueError("format goes with upload or path")
        return self

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        unknown = columns.keys() - {"question", "answer", "system", "explanation"}
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: question, answer, system, explanation")
        return columns
