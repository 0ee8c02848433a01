"""Some equal vLLM servers on this machine, behind Unix sockets that nobody else can reach."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from rlt_service.children import Children, Pauses
from rlt_teacher_server.launch.command import Address, Command, Device, Flags, command
from rlt_teacher_server.launch.devices import VISIBLE, shares, visible_gpus
from rlt_teacher_server.launch.errors import LaunchFailed
from rlt_teacher_server.launch.installed import Installed, installed
from rlt_teacher_server.launch.server import Planned, Server

__all__ = ["Launch", "launched", "plan"]

LONGEST_SOCKET: Final = 107
"""Bytes of a Unix socket's path (sun_path); vLLM's own sockets have names of 36."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start.

    `flags.device` is found out where `device` is `auto`; every replica has `flags.tensor_parallel` GPUs of its own.
    """

    python: Path
    flags: Flags
    device: Literal["auto"] | Device = "auto"
    replicas: int = 1
    start_s: float = 1800.0


@asynccontextmanager
async def launched(launch: Launch, token: int) -> AsyncIterator[dict[str, str]]:
    """Start the servers, wait until each gives a token, and keep them running; gives their addresses by name.

    Args:
        token: a token of the model's.

    Raises:
        LaunchFailed: one of them cannot be started; none runs then.
    """
    launch = replace(launch, python=_absolute(launch.python))
    found = await installed(launch.python)
    device = _device(launch, found)
    gpus = await visible_gpus(os.environ) if device == "gpu" else []
    with private_folder() as folder:
        planned = plan(replace(launch, flags=replace(launch.flags, device=device)), folder, gpus)
        async with Children() as children:
            servers = [_server(each, children, launch, found, token) for each in planned]
            async with _running(servers):
                yield {each.name: each.address for each in planned}


def _absolute(python: Path) -> Path:
    """It is started in another folder. Links are not followed: they tell an interpreter its environment."""
    return Path(shutil.which(python) or python).absolute()


def _device(launch: Launch, found: Installed) -> Device:
    """Raises `LaunchFailed` where vLLM was not built for what is asked."""
    if launch.device not in ("auto", found.build):
        raise LaunchFailed(f"--engine-device {launch.device}: vLLM {found.version} was built for {found.build}")
    return found.build


def plan(launch: Launch, folder: Path, gpus: Sequence[str] = ()) -> list[Planned]:
    """Every server with its command line. Raises `LaunchFailed` where there are too few GPUs."""
    each = launch.flags.tensor_parallel
    split = shares(gpus, launch.replicas, each) if launch.flags.device == "gpu" else [None] * launch.replicas
    return [_planned(launch, folder, f"vllm-{i}", visible) for i, visible in enumerate(split)]


def _planned(launch: Launch, folder: Path, name: str, visible: str | None) -> Planned:
    socket = folder / f"{name}.sock"
    argv, env = command(launch.python, launch.flags, Address(socket=socket))
    if (ours := env.get("PYTHONPATH")) and (given := os.environ.get("PYTHONPATH")):
        env["PYTHONPATH"] = os.pathsep.join((ours, given))
    env["VLLM_RPC_BASE_PATH"] = str(folder)  # where its own processes meet
    if visible is not None:
        env[VISIBLE] = visible
    return Planned(name, Command(argv, env), socket, launch.flags.served_name or str(launch.flags.model))


def _server(planned: Planned, children: Children, launch: Launch, found: Installed, token: int) -> Server:
    what = f"{planned.name} (vLLM {found.version}, {found.build})"
    return Server(planned, children, what=what, token=token, start_s=launch.start_s, pauses=Pauses())


@asynccontextmanager
async def _running(servers: Sequence[Server]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(server.run(), name="keep vLLM running") for server in servers]
    try:
        await asyncio.gather(*(server.up for server in servers))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.gather(*(server.stop() for server in servers))


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder, 0700, in which sockets have names that are short enough; removed with everything in it."""
    usual = tempfile.gettempdir()
    short = len(os.fsencode(usual)) + len("/rlt-vllm-12345678/") + 36 <= LONGEST_SOCKET
    parent = usual if short else "/tmp"  # noqa: S108 the folder in it is new, and its user's alone
    with tempfile.TemporaryDirectory(prefix="rlt-vllm-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
