"""How vLLM is started on this machine's processor: the one place that knows its command line.

vLLM has no keys on some of its routes, so it listens on loopback only; the teacher server stands in front of it. The
first start takes up to a minute; later ones, with vLLM's own cache filled, about half. Its `/health` answers 200
before the first request, which may still kill it: ready is an engine that has produced a token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from rlt_client.errors import RLTError
from rlt_local.ports import HOST

__all__ = ["EngineCommand", "EngineMissing", "engine_command", "engine_python"]

MEBIBYTE: Final = 2**20

ENVIRONMENT: Final = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # model and scheduler in one process: a third off the start
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every engine of this machine is pinned to the same cores
    "VLLM_HOST_IP": HOST,
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # the model is a folder: nothing has to be asked
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONSAFEPATH": "1",  # vLLM starts `python -m …`, which would import from whatever folder this is run in
}


class EngineMissing(RLTError):
    """There is no engine environment where it was looked for."""


class EngineCommand(NamedTuple):
    argv: tuple[str, ...]
    env: dict[str, str]
    """To be added to the environment of the caller."""


def engine_python(folder: Path) -> Path:
    """The interpreter of an engine environment. Raises `EngineMissing`."""
    python = folder / "bin" / "python"
    if not python.exists():
        raise EngineMissing(f"no vLLM environment in {folder}: run `make engine`")
    return python


def engine_command(
    python: Path,
    model: Path,
    port: int,
    *,
    served_name: str | None = None,
    max_model_len: int | None = None,
    cache_mib: int = 256,
    threads: int = 1,
) -> EngineCommand:
    """A vLLM server on the processor.

    Args:
        python: interpreter of the engine environment (`engine_python`).
        model: the model's folder. Its head size must be 32, 64, 80, 96, 112 or 128: vLLM takes another one and then
            dies of the first request.
        served_name: what requests call the model; the folder's path if left out.
        max_model_len: tokens of prompt and completion at most; the model's own limit if left out.
        cache_mib: memory for keys and values; 256 MiB hold 175,000 tokens of the tiny models.
        threads: of one forward pass; one is fastest for tiny models, and where servers share the cores.
    """
    flags = {
        "--host": HOST,
        "--port": str(port),
        "--served-model-name": served_name or str(model),
        "--dtype": "float32",  # log-probs agree with the trainer's to 1e-5; in bfloat16 to 0.1
        "--logprobs-mode": "processed_logprobs",  # of the distribution sampled from: the raw ones ignore temperature
        "--generation-config": "vllm",  # else the model's file changes sampling behind the caller's back
        "--kv-cache-memory-bytes": str(cache_mib * MEBIBYTE),
    }
    if max_model_len is not None:
        flags["--max-model-len"] = str(max_model_len)
    switches = ("--enforce-eager", "--disable-uvicorn-access-log")  # compiling takes longer than a tiny model runs
    argv = (str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(model))
    pairs = tuple(word for pair in flags.items() for word in pair)
    return EngineCommand((*argv, *pairs, *switches), {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)})
