"""`rlt store`: the service's own commands, for a stack that runs or for any database and store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlt_local.store import app


def rlt_store(*args: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RLT_")}
    argv = [sys.executable, "-m", "rlt_client.cli", "store", *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=env)


def test_a_store_is_checked_and_swept_with_its_own_database(postgres_url: str, tmp_path: Path) -> None:
    told = ("--database-url", postgres_url, "--store", str(tmp_path / "store"))
    checked = rlt_store("check", *told)
    assert (checked.returncode, checked.stdout) == (0, "the store is whole\n"), checked.stderr
    swept = rlt_store("sweep", "--dry-run", *told)
    assert (swept.returncode, swept.stdout) == (0, ""), swept.stderr


@pytest.mark.parametrize("half", [("--store", "x"), ("--database-url", "x")])
def test_a_store_is_not_judged_by_another_database(half: tuple[str, str]) -> None:
    done = CliRunner().invoke(app, ["check", *half])
    assert done.exit_code == 2
    assert "go together" in done.output


def test_without_a_stack_it_says_what_to_do(tmp_path: Path) -> None:
    done = rlt_store("check", "--state", str(tmp_path))
    assert done.returncode != 0
    assert "rlt up" in done.stderr
    assert "Traceback" not in done.stderr
