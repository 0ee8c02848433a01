"""Machines without machines: network namespaces on a bridge, each with a host name of its own."""

from __future__ import annotations

import os
import secrets
import subprocess
from dataclasses import replace
from types import TracebackType
from typing import Self

from rlt_local.databases import Program

__all__ = ["Network", "why_not"]

UNDER_ITS_NAME = 'hostname "$0" && exec "$@"'


def why_not() -> str | None:
    """Why no such network can be made here; None if one can."""
    if os.getuid() != 0:
        return "network namespaces need root"
    name = f"rlt-probe-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"the kernel gives no network namespace: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class Network:
    """One switch, at which this machine has `host`, and the machines `names`.

    The addresses are of 198.18.0.0/15, which RFC 2544 keeps for tests: nothing routes there.
    """

    def __init__(self, *names: str) -> None:
        self._id = secrets.token_hex(3)
        self._names = names
        self._third = secrets.randbelow(256)
        self.host = self._address(1)
        self.range = f"198.18.{self._third}.0/24"

    def _address(self, last: int) -> str:
        return f"198.18.{self._third}.{last}"

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("address", "add", f"{self.host}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for index, name in enumerate(self._names):
                self._add(name, self._address(index + 2))
        except BaseException:
            self._remove()
            raise
        return self

    def _add(self, name: str, address: str) -> None:
        space, here, there = self._space(name), self._cable(name), f"{self._cable(name)}x"
        _ip("netns", "add", space)
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
        _ip("link", "set", here, "master", self._bridge, "up")
        _ip("-n", space, "address", "add", f"{address}/24", "dev", there)
        _ip("-n", space, "link", "set", there, "up")
        _ip("-n", space, "link", "set", "lo", "up")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._bridge], check=False, capture_output=True)

    def on(self, name: str, program: Program) -> Program:
        """The program as it runs on that machine."""
        enter = ["ip", "netns", "exec", self._space(name), "unshare", "--uts", "sh", "-c", UNDER_ITS_NAME, name]
        return replace(program, argv=[*enter, *program.argv])

    def unplug(self, name: str) -> None:
        _ip("link", "set", self._cable(name), "down")

    def plug(self, name: str) -> None:
        _ip("link", "set", self._cable(name), "up")

    @property
    def _bridge(self) -> str:
        return f"rlt{self._id}"

    def _space(self, name: str) -> str:
        return f"rlt-{self._id}-{name}"

    def _cable(self, name: str) -> str:
        return f"rlt{self._id}{self._names.index(name)}"  # an interface's name has 15 letters at most


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)
