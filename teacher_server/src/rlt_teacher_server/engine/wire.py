"""What is said to a vLLM server and what it answers: its OpenAI-compatible API, as far as it is used here. Pure."""

from __future__ import annotations

import math
from typing import Any, Final, TypeVar

from pydantic import BaseModel, Field, ValidationError

from rlt_client import vllm_worker
from rlt_client.errors import APIError, ItemError, Unavailable
from rlt_teacher_server.engine.base import SampleRequest
from rlt_teacher_server.errors import Reason, item_error

__all__ = [
    "Choice",
    "Completion",
    "Info",
    "Loras",
    "Model",
    "Models",
    "Reset",
    "Version",
    "WeightInfo",
    "checked",
    "columns",
    "completion_request",
    "ending",
    "message",
    "only",
    "parse",
    "refusal",
    "too_old",
    "top",
]

M = TypeVar("M", bound=BaseModel)

NEUTRAL: Final[dict[str, Any]] = {
    "n": 1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "ignore_eos": False,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,  # two tokens may spell the same text, and would be one entry
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "add_special_tokens": False,
    "echo": False,
    "stream": False,
}
"""Said in every request, so that no default of the server's or the model's takes part."""


NOT_FINITE: Final = "not JSON compliant"  # what the writer of its single replies says of NaN and infinity


class Model(BaseModel):
    id: str
    parent: str | None = None
    """Set for an adapter: the model that it sits on."""
    max_model_len: int | None = None


class Models(BaseModel):
    data: list[Model]


class Version(BaseModel):
    version: str


class WeightInfo(BaseModel):
    weight_version: str


class Reset(BaseModel):
    success: bool


class Loras(BaseModel):
    """The numbers of the adapters in each worker."""

    results: list[list[int]] = Field(min_length=1)


class LoraConfig(BaseModel):
    max_cpu_loras: int


class _ModelConfig(BaseModel):
    dtype: str


class _DeviceConfig(BaseModel):
    device: str | None = None


class _ParallelConfig(BaseModel):
    worker_extension_cls: str = ""


class _Config(BaseModel):
    lora_config: LoraConfig | None
    """None: it was started without `--enable-lora`."""
    model_config_: _ModelConfig = Field(alias="model_config")
    device_config: _DeviceConfig = _DeviceConfig()
    parallel_config: _ParallelConfig = _ParallelConfig()


class Info(BaseModel):
    """What a server in dev mode tells of its settings."""

    vllm_config: _Config

    def packs(self) -> bool:
        """As `rlt_client.vllm_worker.packs`, and raises what it raises."""
        config = self.vllm_config
        return vllm_worker.packs(config.device_config.device, config.parallel_config.worker_extension_cls)


class _Logprobs(BaseModel):
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(BaseModel):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class Completion(BaseModel):
    choices: list[Choice]


class _Refusal(BaseModel):
    message: str = ""
    param: str | None = None


class _Refused(BaseModel):
    error: _Refusal


def completion_request(model: str, request: SampleRequest, *, logprobs: int = 0) -> dict[str, Any]:
    """The body of `POST /v1/completions`. `logprobs` counts the tokens besides the sampled one."""
    return NEUTRAL | {
        "model": model,
        "prompt": request.prompt_token_ids,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop_token_ids": list(request.stop_token_ids),
        "stop": list(request.stop),
        "logprobs": logprobs,
    }


def parse(schema: type[M], body: bytes) -> M:
    """Raises `ItemError` (engine_failed)."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _foreign(repr(body[:100])) from error


def checked(schema: type[M], found: dict[str, Any]) -> M:
    """Raises `ItemError` (engine_failed)."""
    try:
        return schema.model_validate(found)
    except ValidationError as error:
        raise _foreign(str(error)) from error


def _foreign(said: str) -> ItemError:
    return item_error(Reason.engine_failed, f"not the reply of a vLLM server: {said}")


def only(completion: Completion) -> Choice:
    """Raises `ItemError` (engine_failed)."""
    if len(completion.choices) != 1:
        raise item_error(Reason.engine_failed, f"{len(completion.choices)} choices for one prompt")
    return completion.choices[0]


def too_old() -> ItemError:
    return item_error(Reason.engine_failed, "no token ids or log-probs: vLLM 0.10.2 or later is needed")


def columns(choice: Choice) -> tuple[list[int], list[float]]:
    """Ids and log-probs of what was sampled, equally long and finite. Raises `ItemError`."""
    if choice.token_ids is None or choice.logprobs is None:
        raise too_old()
    logprobs = [math.nan if value is None else value for value in choice.logprobs.token_logprobs]
    if len(logprobs) != len(choice.token_ids):
        raise item_error(Reason.engine_failed, f"{len(choice.token_ids)} ids and {len(logprobs)} log-probs")
    if not all(map(math.isfinite, logprobs)):
        raise item_error(Reason.non_finite_logits)
    return choice.token_ids, logprobs


def ending(choice: Choice) -> str:
    """Why it ended.

    Raises:
        ItemError: for an end that is a failure.
        Unavailable: the engine ended it, as it does with all of them when it is stopped.
    """
    if choice.finish_reason == "abort":
        raise Unavailable("the engine broke off a sample", type="engine_down", retry_after=1.0)
    if choice.finish_reason not in ("stop", "length"):
        raise item_error(Reason.engine_failed, f"it ended with {choice.finish_reason!r}")
    return choice.finish_reason


def top(choice: Choice) -> dict[str, float]:
    """Log-probs of the likeliest tokens at the first position, at least two of them. Raises `ItemError`."""
    found = choice.logprobs.top_logprobs if choice.logprobs else None
    if not found or len(found[0] or {}) < 2:
        raise item_error(Reason.engine_failed, "no log-probs")
    return found[0] or {}


def message(body: bytes) -> str:
    """What a refusal says, for people."""
    return _refused(body).message


def _refused(body: bytes) -> _Refusal:
    try:
        return _Refused.model_validate_json(body).error
    except ValidationError:
        return _Refusal(message=body[:200].decode(errors="replace"))


def refusal(status: int, body: bytes) -> APIError | ItemError:
    """What a status other than 2xx means: the request's own fault, or the engine's."""
    said = _refused(body)
    if status not in (400, 413, 422):  # 413 is a proxy's: the engine is not to blame
        return Unavailable(f"the engine answered {status}: {said.message}", type="engine_down", retry_after=1.0)
    if said.param in ("input_tokens", "max_tokens"):
        return item_error(Reason.context_overflow, said.message)
    if NOT_FINITE in said.message:
        return item_error(Reason.non_finite_logits, "the engine cannot write them as JSON")
    unknown = "out of vocabulary" in said.message or "greater than or equal to 0" in said.message
    return item_error(Reason.unknown_token if unknown else Reason.engine_refused, said.message)
