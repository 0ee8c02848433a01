"""The tiny warm-up model, and one real vLLM server on the processor for the whole session."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from rlt_local.databases import Program, start
from rlt_local.ports import free
from rlt_teacher_server.launch.command import Address, Flags, command

ROOT = Path(__file__).parents[2]
START_S = 280.0  # the first start after an installation, with other tests on the same two cores
SERVED_NAME = "tiny"
CACHE_MIB = 256  # 175,000 tokens of the tiny model

StartEngine = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The miniature's warm-up, as teacher and as student; made once on a machine, in about a minute."""
    from rlt_trainer.tiny import ensure_warmup

    return ensure_warmup()


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """The interpreter of vLLM's environment."""
    python = ROOT / ".engine" / "bin" / "python"
    if not python.exists():
        subprocess.run([ROOT / "requirements" / "install.sh", "engine"], check=True)
    return python


@pytest.fixture(scope="session")
def start_vllm(tiny_model: Path, engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> StartEngine:
    """Starts a vLLM server that has produced a token; gives its address."""

    @contextmanager
    def run(port: int | None = None) -> Iterator[str]:
        folder = tmp_path_factory.mktemp("vllm")
        port = port or free()[0]
        flags = Flags(tiny_model, served_name=SERVED_NAME, cache_mib=CACHE_MIB, max_loras=2, max_lora_rank=8, threads=1)
        started = command(engine_python, flags, Address(port=port))
        url = f"http://127.0.0.1:{port}"
        argv = ["env", *(f"{name}={value}" for name, value in started.env.items()), *started.argv]
        program = Program("vllm", argv, folder, url, lambda: _gives_a_token(url), signal.SIGTERM)
        with start(program, folder / "log", die_with_caller=True) as engine:
            try:
                engine.wait_ready(START_S)
                yield url
            finally:
                engine.stop()
                with suppress(ProcessLookupError):
                    os.killpg(engine.process.pid, signal.SIGKILL)

    return run


@pytest.fixture(scope="session")
def vllm_engine(start_vllm: StartEngine) -> Iterator[str]:
    """Base URL of a vLLM server with the tiny model, as `tiny`."""
    with start_vllm() as url:
        yield url


def _gives_a_token(url: str) -> bool:
    """Its `/health` says 200 before a first request that kills it."""
    body = {"model": SERVED_NAME, "prompt": [1], "max_tokens": 1}
    try:
        return httpx.post(f"{url}/v1/completions", json=body, timeout=60).is_success
    except httpx.HTTPError:
        return False
