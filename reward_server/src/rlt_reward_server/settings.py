"""What the reward server can be told: flags and `RLT_REWARD_…` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from rlt_client.schemas.reward import Preset
from rlt_service.settings import ServerSettings

__all__ = ["Settings"]

PASSES_PER_ITEM = 2  # student and hosted teacher


class Settings(ServerSettings):
    """Scores explanations by what a student learns from them."""

    model_config = SettingsConfigDict(env_prefix="RLT_REWARD_")

    port: int = Field(8002, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    student: str = Field(min_length=1, description="name or folder of the student, whose log-probs make the reward")
    teacher: str | None = Field(
        None, description="name or folder of a hosted teacher, for items that come without the teacher's log-probs"
    )
    formats: Path | None = Field(
        None, description="folder of your own prompt formats (*.toml), each of which the models must be able to take"
    )
    format: str = Field("stratos", description="format of requests that name none; the models must be able to take it")
    preset: Preset = Field(Preset.rlt, description="reward of requests that name none")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="numbers of the weights; auto takes the checkpoint's"
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, …; auto takes the first GPU there is")
    threads: int | None = Field(
        None, ge=1, description="threads of one forward pass on CPU; torch's own choice if left out"
    )
    max_batch_tokens: int = Field(
        16_384, ge=1, description="tokens of one forward pass at most, padding included; a longer text runs alone"
    )
    batch_window_ms: float = Field(
        5.0, ge=0, le=1000, description="how long an idle server waits for company before it runs a batch"
    )
    max_queue: int = Field(8192, ge=1, description="passes waiting at most; beyond that requests are refused with 429")
    max_items: int = Field(1024, ge=1, description="items of one request at most")

    @model_validator(mode="after")
    def _a_request_fits_the_queue(self) -> Self:
        if self.max_queue < PASSES_PER_ITEM * self.max_items:
            raise ValueError(
                f"max_queue ({self.max_queue}) must hold one request: at least {PASSES_PER_ITEM} times max_items "
                f"({self.max_items})"
            )
        return self
