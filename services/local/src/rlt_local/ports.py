"""Ports of a stack: the usual three, or free ones."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from rlt_client.errors import RLTError

HOST = "127.0.0.1"
FIRST = 8001
SERVERS = ("teacher", "reward", "jobs")


class PortTaken(RLTError):
    """Something else already listens where the stack would."""


def choose(first: int | None) -> dict[str, int]:
    """A port for each server: `first` and those after it, or, with None, any free ones.

    Raises:
        PortTaken: names the port and the server it was for.
    """
    if first is None:
        return dict(zip(SERVERS, free(len(SERVERS)), strict=True))
    ports = {name: first + i for i, name in enumerate(SERVERS)}
    for name, port in ports.items():
        if taken(port):
            raise PortTaken(
                f"port {port} (for the {name} server) is in use on {HOST}: stop what listens there, or add --ports free"
            )
    return ports


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a port in TIME_WAIT is free
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def free(count: int = 1) -> list[int]:
    """Ports that nothing listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
