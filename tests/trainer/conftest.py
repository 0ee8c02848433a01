"""The tiny models, loaded once a session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from rlt_trainer.tiny import ensure_base, ensure_warmup, good_trace, problems
from rlt_trainer.tiny.model import load_model

LAUNCHED_S = 600.0  # two processes that import torch and train, with other tests on the same two cores


@pytest.fixture(scope="session")
def tiny_base() -> Path:
    return ensure_base()


@pytest.fixture(scope="session")
def tiny_warmup() -> Path:
    """Made in about 40 s the first time on a machine, then found in the user's cache."""
    return ensure_warmup()


@pytest.fixture(scope="session")
def base_model(tiny_base: Path) -> LlamaForCausalLM:
    return load_model(tiny_base)


@pytest.fixture(scope="session")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 rows of question, answer and explanation."""
    rows = [
        {"question": each.question, "answer": each.answer, "explanation": good_trace(each)}
        for each in problems(64, 1, held_out=False)
    ]
    file = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


Settings = Callable[..., dict[str, Any]]
"""Settings of `sft` or `distill`, tables merged with those given."""


@pytest.fixture
def settings(tmp_path: Path, tiny_base: Path, trace_file: Path) -> Settings:
    def make(**given: Any) -> dict[str, Any]:
        told: dict[str, Any] = {
            "output": str(tmp_path / "run"),
            "model": {"name": str(tiny_base), "dtype": "float32", "gradient_checkpointing": False},
            "data": {"path": str(trace_file)},
            "texts": {"format": "mini", "max_tokens": 64},
            "training": {
                "steps": 6,
                "batch_size": 8,
                "micro_batch_size": 4,
                "learning_rate": 1e-3,
                "schedule": "linear",
                "cpu": True,
            },
            "logging": {"to": []},
            "checkpoints": {"every": 0},
        }
        for name, value in given.items():
            told[name] = {**told.get(name, {}), **value} if isinstance(value, Mapping) else value
        return told

    return make


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """Settings as TOML."""

    def write(told: Mapping[str, Any]) -> Path:
        file = tmp_path / f"{Path(told['output']).name}.toml"
        file.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in told.items()))
        return file

    return write


@pytest.fixture
def launch(config_file: Callable[[Mapping[str, Any]], Path]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`rlt-trainer COMMAND` on settings, as a process or, with `by`, started by another program."""

    def run(command: str, told: Mapping[str, Any], *flags: str, by: Sequence[str] = ("-m", "rlt_trainer")) -> Any:
        argv = [sys.executable, *by, command, "--config", str(config_file(told)), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=LAUNCHED_S)

    return run


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        told = [f"{name} = {_toml(each)}" for name, each in value.items() if each is not None]
        return "{" + ", ".join(told) + "}"
    return json.dumps(value)
