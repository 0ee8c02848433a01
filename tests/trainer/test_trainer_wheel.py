"""The wheel carries the base model, which is data and easily forgotten."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path


def test_the_wheel_carries_the_base(tiny_base: Path, tmp_path: Path) -> None:
    trainer = Path(__file__).parents[2] / "trainer"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=trainer, check=True, capture_output=True, timeout=60)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if "/tiny/base/" in name}
    assert packed == {f"rlt_trainer/tiny/base/{file.name}": file.read_bytes() for file in tiny_base.iterdir()}
