"""`make audit` says nothing good about what it could not look up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).parents[2] / "requirements" / "audit.py"
KNOWN = {"name": "good", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "odd", "skip_reason": "not found"}


def run(tmp_path: Path, said: Any) -> subprocess.CompletedProcess[str]:
    """With a pip-audit that answers so; it keeps the shape of the real one's JSON."""
    (tmp_path / "pip_audit.py").write_text(f"print({said!r})")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(AUDIT), "audit"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        ([KNOWN], 0, "1 packages of 1 locks looked up, 0 with advisories"),
        ([KNOWN, BAD], 1, "bad==2\n  PYSEC-1, fixed in 3"),
        ([KNOWN, UNKNOWN], 2, "1 could not be looked up (odd"),
        ([BAD, UNKNOWN], 1, "1 could not be looked up"),
    ],
)
def test_exit_codes(tmp_path: Path, found: list[dict[str, Any]], code: int, words: str) -> None:
    done = run(tmp_path, json.dumps({"dependencies": found}))
    assert (done.returncode, done.stderr) == (code, "")
    assert words in done.stdout


def test_a_service_that_cannot_be_reached_is_no_good_news(tmp_path: Path) -> None:
    done = run(tmp_path, "no JSON")
    assert done.returncode == 2
    assert "0 packages of 1 locks looked up" in done.stdout
