"""What the service adds to a real vLLM on this machine's processor, which it has to share with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from rlt_bench.measure import Record, machine
from rlt_bench.programs import started
from rlt_local.ports import free
from rlt_teacher_server.launch.command import Address, Flags, command
from rlt_trainer.tiny import ensure_warmup
from teacher_bench import server
from teacher_bench.load import Load
from teacher_bench.overhead import compare

__all__ = ["run"]

ROOT: Final = Path(__file__).resolve().parents[3]
CLIENTS: Final = (1, 16, 64, 500)
TOKENS: Final = 100
SECONDS: Final = 20.0
START_S: Final = 300.0
NAME: Final = "tiny"


def run(command: str) -> Record:
    record = Record("teacher-real", command, machine())
    folder = ensure_warmup()
    with _vllm(folder) as engine, server.teacher(folder, engine) as teacher:
        record.machine["vllm"] = httpx.get(f"{engine}/version").json()["version"]
        for clients in CLIENTS:
            compare(record, "vLLM, 87 words, 147k parameters", clients, *_loads(folder, engine, teacher.url, clients))
    record.notes.append(f"{TOKENS} tokens a stream at most; clients, service and engine share the cores")
    return record


def _loads(
    folder: Path, engine: str, teacher: str, clients: int
) -> tuple[Callable[[int], Load], Callable[[int], Load]]:
    def load(url: str, prompt: tuple[int, ...]) -> Callable[[int], Load]:
        return lambda seed: Load(
            url, clients, 5.0, seconds=SECONDS, max_tokens=TOKENS, prompt=prompt, engine_model=NAME, seed=seed
        )

    return load(engine, server.prompt(folder)), load(teacher, ())


@contextmanager
def _vllm(folder: Path) -> Iterator[str]:
    [port] = free()
    flags = Flags(folder, served_name=NAME, cache_mib=1024)
    serve = command(ROOT / ".engine" / "bin" / "python", flags, Address(port=port))
    url = f"http://127.0.0.1:{port}"
    with started("vllm", serve.argv, serve.env, url, "/health", START_S):
        yield url
