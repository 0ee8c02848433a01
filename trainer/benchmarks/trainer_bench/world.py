"""What a run of the trainer needs beside it: a teacher and a reward server, as their users start them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from rlt_bench.programs import started
from rlt_local.ports import free
from rlt_trainer.tiny import problems

__all__ = ["FORMAT", "Settings", "World", "beside", "launched", "server"]

FORMAT: Final = "mini"
START_S: Final = 600.0  # a model of 3 GB from a cold disk, or a vLLM on a processor
ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1"}  # processes share the cores
PROBLEMS: Final = 256

Settings = dict[str, Any]
"""Of a configuration, by their dotted names."""


@dataclass(frozen=True, slots=True)
class World:
    model: Path
    teacher: str
    reward: str
    folder: Path
    """Of what is written meanwhile; the teacher reads policies from it."""

    @property
    def settings(self) -> Settings:
        """What `rlt-trainer rl` is told of it."""
        return {
            "model.name": str(self.model),
            "data.path": str(_problems(self.folder)),
            "texts.format": FORMAT,
            "rollout.url": self.teacher,
            "rollout.weights": str(self.folder / "weights"),
            "reward.url": self.reward,
        }


@contextmanager
def beside(model: Path, *, device: str = "cpu", dtype: str = "float32") -> Iterator[World]:
    """The teacher and the student that rewards it, both from one folder, each generating in its own process."""
    computing = ["--device", device, "--dtype", dtype]
    with TemporaryDirectory() as name:
        folder = Path(name)
        with (
            server("teacher", ["--model", model, "--allowed-roots", folder, *computing]) as teacher,
            server("reward", ["--student", model, *computing]) as reward,
        ):
            yield World(model, teacher, reward, folder)


@contextmanager
def launched(model: Path, python: Path, folder: Path, *, dtype: str, memory_mib: int) -> Iterator[str]:
    """A teacher server that starts vLLM; policies lie in `folder`."""
    vllm = ["--engine", "launch", "--engine-python", python, "--engine-memory-mib", memory_mib]
    with server("teacher", ["--model", model, "--allowed-roots", folder, "--dtype", dtype, *vllm]) as url:
        yield url


@contextmanager
def server(name: str, flags: Sequence[object], environment: Mapping[str, str] = ENVIRONMENT) -> Iterator[str]:
    """The address of `rlt_NAME_server`, ready to work."""
    [port] = free()
    told = [*map(str, flags), "--format", FORMAT, "--port", str(port), "--log-level", "warning"]
    url = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", f"rlt_{name}_server", *told]
    with started(f"{name} server", argv, environment, url, "/readyz", START_S):
        yield url


def _problems(folder: Path) -> Path:
    path = folder / "problems.jsonl"
    if not path.exists():
        rows = [{"question": each.question, "answer": each.answer} for each in problems(PROBLEMS)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
