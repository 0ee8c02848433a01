"""Where vLLM is on this machine: in an environment of its own, whose interpreter the teacher server is told."""

from __future__ import annotations

from pathlib import Path

from rlt_client.errors import RLTError

__all__ = ["EngineMissing", "engine_python"]


class EngineMissing(RLTError):
    """There is no engine environment where it was looked for."""


def engine_python(folder: Path) -> Path:
    """The interpreter of an engine environment. Raises `EngineMissing`."""
    python = folder / "bin" / "python"
    if not python.exists():
        raise EngineMissing(f"no vLLM environment in {folder}: run `make engine`")
    return python
