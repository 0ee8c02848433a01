"""The engine that the settings ask for. torch is imported only where this process generates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt_client.prompts import TextCodec
from rlt_teacher_server.engine.base import Engine
from rlt_teacher_server.model import TeacherModel, UnusableModel
from rlt_teacher_server.settings import IN_PROCESS, Settings

if TYPE_CHECKING:
    from rlt_teacher_server.engine.decoding import Decoder

__all__ = ["make_engine"]

UNBOUNDED = 2**31 - 1  # a model without a limit of its own: memory is the limit


def make_engine(settings: Settings, model: TeacherModel, probe: list[int]) -> Engine:
    """The engine, not started yet. `probe` is a prompt of the model's."""
    return _embedded(settings, model) if settings.engine == IN_PROCESS else _remote(settings, model, probe)


def _remote(settings: Settings, model: TeacherModel, probe: list[int]) -> Engine:
    from rlt_teacher_server.engine.vllm import VLLMEngine

    return VLLMEngine(
        settings.engine,
        probe=probe,
        model=settings.engine_model,
        eos_token_ids=model.eos_token_ids,
        key=settings.engine_key.get_secret_value() if settings.engine_key else None,
        concurrency=settings.engine_concurrency,
        timeout=settings.engine_timeout_s,
    )


def _embedded(settings: Settings, model: TeacherModel) -> Engine:
    from rlt_teacher_server.engine.transformers import TransformersEngine

    return TransformersEngine(
        lambda: _decoder(settings, model.folder, model.codec),
        max_model_len=model.max_positions or UNBOUNDED,
        eos_token_ids=model.eos_token_ids,
        batch_tokens=settings.batch_tokens,
        window=settings.batch_window_ms / 1e3,
    )


def _decoder(settings: Settings, folder: Path, codec: TextCodec) -> Decoder:
    """Raises `UnusableModel`."""
    import torch

    from rlt_teacher_server.engine.decoding import Decoder

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return Decoder(_weights(folder, settings), codec.decode)


def _weights(folder: Path, settings: Settings) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=settings.dtype, local_files_only=True, output_loading_info=True
        )
        model, found = loaded
        model.to(_device(settings.device)).eval()
    except Exception as error:  # broken files, unknown architectures, too little memory: transformers has no base class
        raise UnusableModel(f"{folder}: the model cannot be loaded: {str(error).splitlines()[:1]}") from error
    wrong = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if wrong:  # transformers fills these with random numbers and only warns
        raise UnusableModel(f"{folder}: weights are missing or of another shape: {', '.join(wrong[:5])}")
    return model


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
