"""What a person may say about a stack."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rlt_local.ports import FIRST

TRANSFORMERS = "transformers"
"""In the teacher server's own process: a tiny model is up in seconds."""
VLLM = "vllm"
"""A vLLM server that the teacher server starts, from the environment that `make engine` made."""


class StackOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str | None = Field(default=None, description="name or folder of the model; a tiny one if left out")
    student: str | None = Field(default=None, description="the teacher's model if left out")
    format: str | None = Field(default=None, description="`mini` for the tiny models, `stratos` for others")
    formats: Path | None = Field(default=None, description="folder of own prompt formats")
    engine: str = Field(default=TRANSFORMERS, description="transformers, vllm, or addresses of vLLM servers")
    engine_env: Path = Field(default=Path(".engine"), description="vLLM's environment")
    engine_memory_mib: int | None = Field(
        default=None, ge=64, description="vLLM's memory for keys and values; 256 for the tiny models, else 4096"
    )
    hosted_teacher: bool = Field(default=True, description="the reward server holds a copy of the teacher too")
    workers: int = Field(default=2, ge=1, le=256, description="worker processes, a shard each at a time")
    first_port: int | None = Field(default=FIRST, ge=1, le=65_533, description="of three in a row; None: free ones")
    start_timeout: float = Field(default=900.0, gt=0, description="seconds until everything must be ready")

    @model_validator(mode="after")
    def _a_student_has_a_teacher(self) -> Self:
        if self.student is not None and self.teacher is None:
            raise ValueError("--student goes with --teacher: the tiny models come as a pair")
        return self

    @field_validator("engine")
    @classmethod
    def _an_engine(cls, engine: str) -> str:
        if engine not in (TRANSFORMERS, VLLM) and not engine.startswith(("http://", "https://", "unix:/")):
            raise ValueError(f"{engine!r} is neither {TRANSFORMERS}, {VLLM} nor an address (http://…, unix:/…)")
        return engine

    @property
    def tiny(self) -> bool:
        return self.teacher is None

    @property
    def prompt_format(self) -> str:
        return self.format or ("mini" if self.tiny else "stratos")

    @property
    def engine_cache_mib(self) -> int:
        return self.engine_memory_mib or (256 if self.tiny else 4096)
