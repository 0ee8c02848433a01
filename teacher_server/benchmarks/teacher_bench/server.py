"""What is measured: a teacher server as its users start it, before an engine that keeps a pace."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rlt_bench.programs import memory_mib, started
from rlt_client.formats import shipped_formats
from rlt_client.prompts import TextCodec, teacher_prompt
from rlt_local.ports import free
from rlt_trainer.tiny import ensure_warmup
from teacher_bench.engine import Pace

__all__ = ["Server", "model", "paced", "prompt", "scoring", "teacher"]

START_S: Final = 120.0
ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1"}
ROOM: Final = 32_768


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    pid: int

    def memory_mib(self) -> float:
        return memory_mib(self.pid)


@contextmanager
def model() -> Iterator[Path]:
    """The miniature's teacher, said to take long texts: nothing is computed with it."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "tiny"
        shutil.copytree(ensure_warmup(), copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": ROOM}))
        yield copy


def prompt(folder: Path) -> tuple[int, ...]:
    """A prompt as the teacher server makes it."""
    codec, format = TextCodec.of_folder(folder), shipped_formats()["mini"]
    return tuple(codec.encode(teacher_prompt(codec, format, format.probe.question, format.probe.answer)).ids)


@contextmanager
def paced(folder: Path, **pace: float | int) -> Iterator[str]:
    """The address of an engine that keeps a pace."""
    [port] = free()
    argv = [sys.executable, "-m", "teacher_bench.engine", json.dumps(asdict(Pace(port, str(folder), **pace)))]  # type: ignore[arg-type]
    url = f"http://127.0.0.1:{port}"
    with started("paced engine", argv, ENVIRONMENT, url, "/health", START_S):
        yield url


@contextmanager
def teacher(folder: Path, engine: str, *flags: str) -> Iterator[Server]:
    """The teacher server before an engine."""
    given = ["--model", str(folder), "--engine", engine, "--format", "mini", *flags]
    with _server("teacher server", ["rlt_teacher_server"], given) as server:
        yield server


@contextmanager
def scoring(folder: Path, tokens_per_s: float) -> Iterator[Server]:
    """The reward server with an engine that keeps a pace."""
    words = ["reward_bench.paced", str(tokens_per_s)]
    with _server("reward server", words, ["--student", str(folder), "--format", "mini"]) as server:
        yield server


@contextmanager
def _server(name: str, words: list[str], flags: list[str]) -> Iterator[Server]:
    [port] = free()
    argv = [sys.executable, "-m", *words, *flags, "--port", str(port), "--log-level", "warning"]
    url = f"http://127.0.0.1:{port}"
    with started(name, argv, ENVIRONMENT, url, "/readyz", START_S) as pid:
        yield Server(url, pid)
