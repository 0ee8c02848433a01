"""What a person may say about a stack."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlt_local.ports import FIRST


class Engine(StrEnum):
    auto = "auto"
    """vLLM where there is a GPU and an engine environment, else transformers."""
    transformers = "transformers"
    """In the teacher server's own process: a tiny model is up in seconds."""
    vllm = "vllm"
    """A vLLM server from the engine environment (`make engine`)."""


class StackOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str | None = Field(default=None, description="name or folder of the model; a tiny one if left out")
    student: str | None = Field(default=None, description="the teacher's model if left out")
    format: str | None = Field(default=None, description="`mini` for the tiny models, `stratos` for others")
    formats: Path | None = Field(default=None, description="folder of own prompt formats")
    engine: Engine = Engine.auto
    hosted_teacher: bool = Field(default=True, description="the reward server holds a copy of the teacher too")
    workers: int = Field(default=2, ge=1, le=256, description="worker processes, a shard each at a time")
    first_port: int | None = Field(default=FIRST, ge=1, le=65_533, description="of three in a row; None: free ones")
    start_timeout: float = Field(default=900.0, gt=0, description="seconds until everything must be ready")

    @model_validator(mode="after")
    def _a_student_has_a_teacher(self) -> Self:
        if self.student is not None and self.teacher is None:
            raise ValueError("--student goes with --teacher: the tiny models come as a pair")
        return self

    @property
    def tiny(self) -> bool:
        return self.teacher is None

    @property
    def prompt_format(self) -> str:
        return self.format or ("mini" if self.tiny else "stratos")
