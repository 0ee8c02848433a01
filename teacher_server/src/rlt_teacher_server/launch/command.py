"""The command line of a vLLM server: the one place that knows it. Pure.

Sources: `vllm serve --help=all` of vLLM 0.31 and `vllm/envs.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from rlt_client import vllm_worker

__all__ = ["LORA_RANKS", "OURS", "SAFE_PATH", "Address", "Command", "Device", "Flags", "command"]

Device = Literal["cpu", "gpu"]

MEBIBYTE: Final = 2**20
KEPT_LORAS: Final = 64  # in the machine's memory, which they take when they are loaded; no more can be loaded
GPU_STREAM_INTERVAL: Final = 4
"""Tokens in one event of a stream, but for the first, which goes alone: what an event costs, there and here, limits how
many streams of a fast model there can be. On a processor, which is slow, an event a token."""
LOOPBACK: Final = "127.0.0.1"
LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes; an adapter of a lower rank fits."""

OURS: Final = {
    "--uds": "where the teacher server finds it",
    "--host": "not for a server that only the teacher server may reach",
    "--port": "not for a server that only the teacher server may reach",
    "--api-key": "not needed: only the teacher server reaches it",
    "--model": "--model of the teacher server",
    "--served-model-name": "--engine-model",
    "--logprobs-mode": "processed_logprobs always: rewards are computed from them",
    "--generation-config": "vllm always: requests say how to sample",
    "--tensor-parallel-size": "--engine-tensor-parallel, which also shares the GPUs out",
    "-tp": "--engine-tensor-parallel, which also shares the GPUs out",
}
"""Flags that must not be changed behind our back, and what to use in their place."""

SAFE_PATH: Final = {"PYTHONSAFEPATH": "1"}
"""Else `python -m` and `python -c`, vLLM's own too, import from whatever folder they are run in."""

ENVIRONMENT: Final = {
    "VLLM_SERVER_DEV_MODE": "1",  # routes for new weights and a clean prefix cache
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # routes for adapters
    "VLLM_HOST_IP": LOOPBACK,  # what its own processes tell each other stays on this machine
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # the model is a folder: nothing has to be asked
    "TOKENIZERS_PARALLELISM": "false",
    **SAFE_PATH,
    "PYTHONUNBUFFERED": "1",  # a log that ends mid-sentence hides why it died
}

ON_CPU: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # model and scheduler in one process: a third off the start
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every engine of this machine is pinned to the same cores
    "PYTHONPATH": str(vllm_worker.FOLDER),
}


class Address(NamedTuple):
    """Where it listens: a Unix socket, or a port of this machine."""

    socket: Path | None = None
    port: int | None = None


class Command(NamedTuple):
    argv: tuple[str, ...]
    env: dict[str, str]
    """To be added to the environment of the caller."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What a vLLM server is told.

    The head size of a model on a processor must be 32, 64, 80, 96, 112 or 128: vLLM takes another one and then dies of
    the first request.
    """

    model: Path
    device: Device = "cpu"
    served_name: str | None = None
    """What requests call the model; the folder's path if None."""
    dtype: str = "auto"
    """`auto`: the checkpoint's on a GPU; float32 on a processor."""
    max_model_len: int | None = None
    """Tokens of prompt and completion at most; the model's own limit if None."""
    cache_mib: int | None = None
    """Memory for keys and values; None: what `gpu_memory` leaves, or `CPU_CACHE_MIB`."""
    gpu_memory: float = 0.9
    """Share of a GPU's memory for weights, activations, keys and values."""
    tensor_parallel: int = 1
    max_loras: int = 4
    """Adapters in one batch; more are loaded, and take turns."""
    max_lora_rank: int = 64
    threads: int | None = None
    """Of one forward pass on a processor, where one is fastest for tiny models and where servers share the cores. None:
    what `OMP_NUM_THREADS` says, or all cores."""
    extra: tuple[str, ...] = field(default=())
    """Passed on as they are, last: of two equal flags vLLM takes the later one."""


CPU_CACHE_MIB: Final = 4096  # 256 MiB hold 175,000 tokens of the tiny models; 4 GiB 370,000 of a 0.5B one in float32


def command(python: Path, flags: Flags, address: Address) -> Command:
    """`vllm serve`, run by the interpreter of vLLM's environment."""
    argv = (str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(flags.model))
    device = _on_cpu(flags) if flags.device == "cpu" else _on_gpu(flags)
    return Command((*argv, *_listening(address), *_common(flags), *device, *flags.extra), _environment(flags))


def _listening(address: Address) -> tuple[str, ...]:
    if address.socket is not None:
        return ("--uds", str(address.socket))
    return ("--host", LOOPBACK, "--port", str(address.port))


def _common(flags: Flags) -> Iterator[str]:
    yield from ("--served-model-name", flags.served_name or str(flags.model))
    # of the distribution that is sampled from: the raw ones ignore temperature
    yield from ("--logprobs-mode", "processed_logprobs")
    # else the model's file changes sampling behind the caller's back
    yield from ("--generation-config", "vllm")
    yield from ("--enable-prefix-caching", "--disable-uvicorn-access-log")
    if flags.max_model_len is not None:
        yield from ("--max-model-len", str(flags.max_model_len))
    if flags.tensor_parallel > 1:
        yield from ("--tensor-parallel-size", str(flags.tensor_parallel))
    if flags.max_loras:
        yield from ("--enable-lora", "--max-loras", str(flags.max_loras), "--max-lora-rank", str(flags.max_lora_rank))
        yield from ("--max-cpu-loras", str(max(KEPT_LORAS, flags.max_loras)))


def _on_cpu(flags: Flags) -> Iterator[str]:
    # in float32 log-probs agree with the trainer's to 1e-5; in bfloat16 to 0.1
    yield from ("--dtype", "float32" if flags.dtype == "auto" else flags.dtype)
    yield from ("--kv-cache-memory-bytes", str((flags.cache_mib or CPU_CACHE_MIB) * MEBIBYTE))
    yield "--enforce-eager"  # compiling takes longer than a tiny model runs
    yield from ("--worker-extension-cls", vllm_worker.EXTENSION)


def _on_gpu(flags: Flags) -> Iterator[str]:
    yield from ("--dtype", flags.dtype)
    yield from ("--stream-interval", str(GPU_STREAM_INTERVAL))
    if flags.cache_mib is not None:
        yield from ("--kv-cache-memory-bytes", str(flags.cache_mib * MEBIBYTE))
    else:
        yield from ("--gpu-memory-utilization", f"{flags.gpu_memory:g}")


def _environment(flags: Flags) -> dict[str, str]:
    if flags.device != "cpu":
        return dict(ENVIRONMENT)
    threads = {} if flags.threads is None else {"OMP_NUM_THREADS": str(flags.threads)}
    return {**ENVIRONMENT, **ON_CPU, **threads}
