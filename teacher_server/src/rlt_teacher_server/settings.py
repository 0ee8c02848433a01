"""What the teacher server can be told: flags and `RLT_TEACHER_…` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from rlt_client.schemas.explain import MAX_SAMPLES
from rlt_service.settings import ServerSettings

__all__ = ["IN_PROCESS", "Settings"]

IN_PROCESS = "transformers"


class Settings(ServerSettings):
    """Explains a question and its answer."""

    model_config = SettingsConfigDict(env_prefix="RLT_TEACHER_")

    port: int = Field(8001, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model: str = Field(min_length=1, description="name or folder of the teacher: tokenizer, and weights for their hash")
    engine: str = Field(
        IN_PROCESS, description="address of a vLLM server that serves the model, or `transformers`: in this process"
    )
    engine_model: str | None = Field(None, description="what vLLM calls the model; the one it serves if left out")
    engine_key: SecretStr | None = Field(None, description="vLLM's own key, where it was given one (--api-key)")
    engine_concurrency: int = Field(
        512, ge=1, description="requests at vLLM at once; twice its --max-num-seqs keeps its batches full"
    )
    engine_timeout_s: float = Field(
        1800.0, gt=0, description="seconds for one sample at vLLM: 16,000 tokens at 20 tokens a second, and a queue"
    )
    formats: Path | None = Field(None, description="folder of your own prompt formats (*.toml)")
    format: str = Field("stratos", description="format of requests that name none; the model must be able to take it")
    reward_url: str | None = Field(None, description="reward server, which scores explanations where asked to")
    reward_key: SecretStr | None = Field(None, description="key for the reward server (scope `reward`)")
    reward_timeout_s: float = Field(
        300.0, gt=0, description="seconds for one score, retries included; a long explanation takes a second on a GPU"
    )
    max_tokens: int = Field(
        16_384, ge=1, description="budget of requests that name none (the paper's), cut to the room in the context"
    )
    max_samples: int = Field(4096, ge=1, description="samples being made or waiting; beyond that requests get 429")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="in this process: numbers of the weights; auto takes the checkpoint's"
    )
    device: str = Field("auto", description="in this process: cpu, cuda, cuda:1, …; auto takes the first GPU there is")
    threads: int | None = Field(
        None, ge=1, description="in this process: threads of one forward pass on CPU; torch's own choice if left out"
    )
    batch_tokens: int = Field(
        32_768,
        ge=1,
        description="in this process: prompts and budgets of one batch; a larger sample runs alone",
    )
    batch_window_ms: float = Field(
        5.0, ge=0, le=1000, description="in this process: how long an idle engine waits for company"
    )

    @field_validator("engine")
    @classmethod
    def _an_engine(cls, engine: str) -> str:
        if engine != IN_PROCESS and not engine.startswith(("http://", "https://")):
            raise ValueError(f"must be `{IN_PROCESS}` or an address (http://…)")
        return engine.rstrip("/")

    @model_validator(mode="after")
    def _a_request_fits(self) -> Self:
        if self.max_samples < MAX_SAMPLES:
            raise ValueError(f"max_samples ({self.max_samples}) must hold one request: at least {MAX_SAMPLES}")
        return self
