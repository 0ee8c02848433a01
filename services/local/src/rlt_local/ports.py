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


def free(count: int = 1, host: str = HOST) -> list[int]:
    """Ports of an address of this machine that nothing listens on, all different.

    Each rests in TIME_WAIT: for a minute the kernel gives it to nobody who asks for any port, while a server that names
    it and sets SO_REUSEADDR, as they all do, may listen there.
    """
    with ExitStack() as stack:
        return [_rested(stack, host) for _ in range(count)]


def _rested(stack: ExitStack, host: str) -> int:
    listener = stack.enter_context(socket.create_server((host, 0)))  # sets SO_REUSEADDR, which must be set on both
    stack.enter_context(socket.create_connection(listener.getsockname()))
    listener.accept()[0].close()  # who closes first is who waits: the side with this port
    port: int = listener.getsockname()[1]
    return port
