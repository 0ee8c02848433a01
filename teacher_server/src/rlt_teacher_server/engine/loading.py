"""The engines that the settings ask for. torch is imported only where this process generates."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from rlt_service.secret_files import secret
from rlt_teacher_server.engine.base import Engine, FullWeights
from rlt_teacher_server.engine.pool import PoolOptions
from rlt_teacher_server.launch.command import Flags
from rlt_teacher_server.launch.launcher import Launch, launched
from rlt_teacher_server.model import TeacherModel
from rlt_teacher_server.settings import IN_PROCESS, LAUNCH, Settings

__all__ = ["engine_addresses", "make_engines", "pool_options"]

UNBOUNDED = 2**31 - 1  # a model without a limit of its own: memory is the limit


@asynccontextmanager
async def engine_addresses(settings: Settings, model: TeacherModel, probe: list[int]) -> AsyncIterator[dict[str, str]]:
    """Where the vLLM servers are, by the names that people read; none where this process generates. Those that are
    launched run as long as the context is open.

    Raises:
        LaunchFailed: one of them cannot be started.
    """
    if settings.engine == [LAUNCH]:
        async with launched(_launch(settings, model), token=probe[-1]) as addresses:
            yield addresses
    else:
        yield {_name(address): address for address in settings.engine if address != IN_PROCESS}


def make_engines(
    settings: Settings, model: TeacherModel, probe: list[int], addresses: Mapping[str, str]
) -> dict[str, Engine]:
    """The engines by name, not started yet.

    Args:
        probe: a prompt of the model's.
        addresses: of vLLM servers (`engine_addresses`).
    """
    if not addresses:
        return {IN_PROCESS: _embedded(settings, model)}
    return {name: _remote(address, settings, model, probe) for name, address in addresses.items()}


def pool_options(settings: Settings) -> PoolOptions:
    return PoolOptions(
        drain_s=settings.engine_drain_s, load_s=settings.engine_load_s, max_waiting=settings.engine_max_waiting
    )


def _name(address: str) -> str:
    """Without a password: names are shown."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _launch(settings: Settings, model: TeacherModel) -> Launch:
    flags = Flags(
        model=model.folder,
        served_name=settings.engine_model or model.ref.name,
        dtype=settings.dtype,
        max_model_len=settings.engine_max_model_len,
        cache_mib=settings.engine_memory_mib,
        gpu_memory=settings.engine_gpu_memory,
        tensor_parallel=settings.engine_tensor_parallel,
        max_loras=settings.engine_max_loras,
        max_lora_rank=settings.engine_max_lora_rank,
        threads=settings.threads,
        extra=settings.engine_flags,
    )
    return Launch(
        python=settings.engine_python or Path(sys.executable),
        flags=flags,
        device=settings.engine_device,
        replicas=settings.engine_replicas,
        start_s=settings.engine_start_s,
    )


def _remote(address: str, settings: Settings, model: TeacherModel, probe: list[int]) -> Engine:
    from rlt_teacher_server.engine.vllm import VLLMEngine

    return VLLMEngine(
        address,
        probe=probe,
        weights=FullWeights(model.ref.revision, model.folder),
        model=settings.engine_model,
        eos_token_ids=model.eos_token_ids,
        key=secret(settings, "engine_key"),
        concurrency=settings.engine_concurrency,
        timeout=settings.engine_timeout_s,
    )


def _embedded(settings: Settings, model: TeacherModel) -> Engine:
    from rlt_teacher_server.engine.transformers import TransformersEngine
    from rlt_teacher_server.engine.weights import Loader

    return TransformersEngine(
        Loader(model.codec.decode, dtype=settings.dtype, device=settings.device, threads=settings.threads),
        FullWeights(model.ref.revision, model.folder),
        max_model_len=model.max_positions or UNBOUNDED,
        eos_token_ids=model.eos_token_ids,
        batch_tokens=settings.batch_tokens,
        window=settings.batch_window_ms / 1e3,
    )
