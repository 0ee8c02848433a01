"""`make demo`, as a stranger runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlt_local.state import StateFolder
from rlt_local.stop import is_alive


@pytest.mark.slow
def test_the_demo_keeps_every_promise_and_leaves_nothing_running(run, tmp_path: Path) -> None:
    done = run("demo", "--state", "demo", cwd=tmp_path, timeout=360)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert done.stdout.count("✓") == 6
    assert "✗" not in done.stdout
    out = tmp_path / "demo" / "out"
    lines = (out / "chains-build1.jsonl").read_text().splitlines()
    assert len(lines) == 200
    assert all(json.loads(line)["messages"][-1]["role"] == "assistant" for line in lines)
    assert (out / "chains-build1" / "README.md").exists()
    assert not is_alive(StateFolder(tmp_path / "demo").read())
