"""`make demo`, as a stranger runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlt_local.state import StateFolder
from rlt_local.stop import is_alive

ENGINE_ENV = Path(__file__).parents[2] / ".engine"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # vLLM alone takes a minute or two to start where cores are busy
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.engine)])
def test_the_demo_keeps_every_promise_and_leaves_nothing_running(engine: str, run, tmp_path: Path) -> None:
    options = ("--engine", engine, "--engine-env", str(ENGINE_ENV), "--state", "demo")
    done = run("demo", *options, cwd=tmp_path, timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert done.stdout.count("✓") == 6
    assert "✗" not in done.stdout
    out = tmp_path / "demo" / "out"
    lines = (out / "chains-build1.jsonl").read_text().splitlines()
    assert len(lines) == 200
    assert all(json.loads(line)["messages"][-1]["role"] == "assistant" for line in lines)
    assert (out / "chains-build1" / "README.md").exists()
    assert not is_alive(StateFolder(tmp_path / "demo").read())
