"""What the programs of a stack are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt_local.component import Component
from rlt_local.engine import EngineMissing
from rlt_local.options import StackOptions
from rlt_local.plan import plan
from rlt_local.state import StateFolder

IDENTITY = (1, 0.0)


@pytest.fixture
def teacher(folder: StateFolder):
    def planned(**options) -> Component:
        components, _ = plan(StackOptions(first_port=None, **options), folder, IDENTITY)
        [server] = [component for component in components if component.name == "teacher"]
        return server

    return planned


def test_the_teacher_server_starts_vllm_itself(teacher, tmp_path: Path) -> None:
    python = tmp_path / "engine" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    env = teacher(engine="vllm", engine_env=tmp_path / "engine", engine_memory_mib=512).env
    assert env["RLT_TEACHER_ENGINE"] == "launch"
    assert env["RLT_TEACHER_ENGINE_PYTHON"] == str(python)
    assert env["RLT_TEACHER_ENGINE_MEMORY_MIB"] == "512"


@pytest.mark.parametrize("engine", ["http://gpu:8000", "http://a:1,http://b:1", "unix:/run/vllm.sock"])
def test_other_engines_are_named_as_they_are(teacher, engine: str) -> None:
    env = teacher(engine=engine).env
    assert env["RLT_TEACHER_ENGINE"] == engine
    assert "RLT_TEACHER_ENGINE_PYTHON" not in env


def test_a_missing_engine_environment_is_told_before_anything_starts(teacher, tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="run `make engine`"):
        teacher(engine="vllm", engine_env=tmp_path / "engine")
