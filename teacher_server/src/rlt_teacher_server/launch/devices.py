"""Which GPUs there are, and which of them each replica gets. torch is not asked: it would keep hold of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from rlt_teacher_server.launch.errors import LaunchFailed

__all__ = ["VISIBLE", "shares", "visible_gpus"]

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
LIST: Final = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
ASK_S: Final = 30.0  # a driver that is not kept loaded takes seconds to answer


async def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """As `CUDA_VISIBLE_DEVICES` names them (numbers, UUIDs, slices); where it is not set, all that the driver knows."""
    if VISIBLE in environment:
        return [name.strip() for name in environment[VISIBLE].split(",") if name.strip() and name.strip() != "-1"]
    try:
        process = await asyncio.create_subprocess_exec(
            *LIST,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        out, _ = await asyncio.wait_for(process.communicate(), ASK_S)
    except (OSError, TimeoutError):  # no driver, or one that hangs
        return []
    return out.decode().split() if process.returncode == 0 else []


def shares(gpus: Sequence[str], replicas: int, each: int) -> list[str]:
    """`CUDA_VISIBLE_DEVICES` of each replica: as many as its tensor-parallel size, in order, none twice.

    Raises:
        LaunchFailed: there are too few.
    """
    if len(gpus) < replicas * each:
        wanted = f"{replicas} replica{'s' * (replicas > 1)} of {each} GPU{'s' * (each > 1)}"
        raise LaunchFailed(f"{wanted} need {replicas * each}; {_seen(gpus)}")
    return [",".join(gpus[i * each : (i + 1) * each]) for i in range(replicas)]


def _seen(gpus: Sequence[str]) -> str:
    if not gpus:
        return f"there is none to be seen (nvidia-smi, {VISIBLE})"
    return f"there {'is' if len(gpus) == 1 else 'are'} {len(gpus)} ({VISIBLE}={','.join(gpus)})"
