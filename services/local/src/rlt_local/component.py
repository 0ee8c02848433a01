"""What the supervisor is told of one program of the stack, and how it finds out that the program is ready."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

Probe = Callable[[], Awaitable[str | None]]
"""Asks once whether the program is ready: None if so, else what it still waits for."""

PROBE_TIMEOUT: Final = 15.0  # /readyz itself gives up after 10 s and then says why


@dataclass(frozen=True, slots=True)
class Component:
    """One program.

    `once`: it has to end with status 0 before what needs it is started (a migration); everything else is started
    again whenever it ends. `beat` is a file that it makes when it is ready; removed before each start.
    `cwd` is the stack's folder if left out.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    ready: Probe | None = None
    beat: Path | None = None
    once: bool = False
    url: str | None = None
    cwd: Path | None = None
    stop_signal: int = signal.SIGTERM
    stop_grace: float = 15.0  # a worker gives its leases back and a server finishes its requests within this time
    death_signal: int = signal.SIGKILL


def file_ready(path: Path) -> Probe:
    """Ready when the file is there."""

    async def probe() -> str | None:
        return None if path.exists() else "starting"  # noqa: ASYNC240 a stat of a local file

    return probe


def http_ready(url: str) -> Probe:
    """Ready when a GET of `url` answers 200."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()

    async def probe() -> str | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(request)
                reply = await reader.read(65_536)
                writer.close()
        except TimeoutError:
            return f"no answer within {PROBE_TIMEOUT:g} s"
        except OSError:
            return "not listening yet"
        return _reason(reply)

    return probe


def _reason(reply: bytes) -> str | None:
    head, _, body = reply.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].decode(errors="replace").split(" ", 2)
    if words[1:2] == ["200"]:
        return None
    return _detail(body) or " ".join(words[1:])


def _detail(body: bytes) -> str | None:
    """What a problem document says, in its own words."""
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(detail)[:200]
