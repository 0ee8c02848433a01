"""Whether a program is ready, asked from outside. `python -m rlt_service.probe URL|FILE`: what containers are asked by.

A URL is ready when it answers 200, a heartbeat file while its program touches it. Standard library only: an
orchestrator starts this every few seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

__all__ = ["MAX_AGE", "Probe", "file_ready", "fresh", "http_ready", "main"]

Probe = Callable[[], Awaitable[str | None]]
"""Asks once whether the program is ready: None if so, else what it still waits for."""

TIMEOUT: Final = 15.0  # /readyz itself gives up after 10 s and then says why
MAX_AGE: Final = 60.0  # a worker touches its file every 10 s: five times missed on a busy machine is no death


def file_ready(path: Path) -> Probe:
    """Ready when the file is there."""

    async def probe() -> str | None:
        return None if path.exists() else "starting"  # noqa: ASYNC240 a stat of a local file

    return probe


def fresh(path: Path, max_age: float = MAX_AGE) -> Probe:
    """Ready while the file was touched within `max_age` seconds."""

    async def probe() -> str | None:
        try:
            age = time.time() - path.stat().st_mtime  # noqa: ASYNC240 a stat of a local file
        except FileNotFoundError:
            return f"no heartbeat yet in {path}"
        return None if age <= max_age else f"the last heartbeat is {age:.0f} s old"

    return probe


def http_ready(url: str) -> Probe:
    """Ready when a GET of `url` answers 200."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()

    async def probe() -> str | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(request)
                reply = await reader.read(65_536)
                writer.close()
        except TimeoutError:
            return f"no answer within {TIMEOUT:g} s"
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


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 if ready, else 1 and one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m rlt_service.probe", description="Is it ready?")
    parser.add_argument("target", metavar="URL|FILE", help="http://… that answers 200, or a heartbeat file")
    parser.add_argument("--max-age", type=float, default=MAX_AGE, metavar="SECONDS", help="of a heartbeat (60)")
    asked = parser.parse_args(argv)
    waits_for = asyncio.run(_ask(asked.target, asked.max_age))
    if waits_for is not None:
        sys.stderr.write(f"{waits_for}\n")
    return 0 if waits_for is None else 1


async def _ask(target: str, max_age: float) -> str | None:
    return await (http_ready(target) if target.startswith("http://") else fresh(Path(target), max_age))()


if __name__ == "__main__":
    sys.exit(main())
