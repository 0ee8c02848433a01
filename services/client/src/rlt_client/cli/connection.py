"""Where the services are: options and variables first, then the local stack of this folder, then the usual ports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer

from rlt_client.errors import TransportError

if TYPE_CHECKING:
    from rlt_client.aio import ServiceClient

__all__ = [
    "LONG_PATIENCE",
    "PATIENCE",
    "JobsURL",
    "Key",
    "RewardURL",
    "Service",
    "StateDir",
    "TeacherURL",
    "call",
    "find_service",
    "reach",
]

C = TypeVar("C", bound="ServiceClient")
T = TypeVar("T")

DEFAULT_STATE = Path(".rlt")
PORTS = {"teacher": 8001, "reward": 8002, "jobs": 8003}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
FIRST_SIGN = 5.0  # seconds for the first sign of life
PATIENCE = 10.0  # somebody waits at the terminal: a refusal that lasts this long is told
LONG_PATIENCE = 120.0  # somebody who watches a build wants to see it through a server's restart

_PANEL = "Connection"
TeacherURL = Annotated[
    str | None, typer.Option(envvar="RLT_TEACHER_URL", help="the teacher server", rich_help_panel=_PANEL)
]
RewardURL = Annotated[
    str | None, typer.Option(envvar="RLT_REWARD_URL", help="the reward server", rich_help_panel=_PANEL)
]
JobsURL = Annotated[str | None, typer.Option(envvar="RLT_JOBS_URL", help="the jobs service", rich_help_panel=_PANEL)]
Key = Annotated[
    str | None, typer.Option(envvar="RLT_KEY", help="sent as a bearer token", rich_help_panel=_PANEL, show_envvar=True)
]
StateDir = Annotated[
    Path, typer.Option("--state", envvar="RLT_STATE", help="folder of a local stack", rich_help_panel=_PANEL)
]


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    url: str
    key: str | None = None


def find_service(name: str, url: str | None, key: str | None, state: Path) -> Service:
    """One of `teacher`, `reward`, `jobs`. The local stack's key goes to the local stack's servers only."""
    stack = _running_stack(state)
    local = stack.get("urls", {}).get(name)
    url = (url or local or f"http://127.0.0.1:{PORTS[name]}").rstrip("/")
    if key is None and local is not None and url == local.rstrip("/"):
        key = _read_key(stack)
    return Service(name, url, key)


def _running_stack(state: Path) -> dict[str, Any]:
    """The record of a local stack that is up, or nothing. Never one that points to another machine."""
    try:
        stack = json.loads((state / "stack.json").read_bytes())
        hosts = {urlsplit(url).hostname for url in stack["urls"].values()}
        return stack if stack["state"] in ("starting", "ready") and hosts <= set(LOOPBACK) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _read_key(stack: dict[str, Any]) -> str | None:
    try:
        return Path(stack["key_file"]).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError, KeyError, TypeError):
        return None


def call(client: type[C], service: Service, work: Callable[[C], Awaitable[T]], *, patience: float = PATIENCE) -> T:
    """What `work` makes of a client of the service, once the service has given a sign of life.

    Raises:
        TransportError: nobody answers there; and what `work` raises.
    """

    async def run() -> T:
        await reach(service)
        async with client(service.url, key=service.key, patience=patience) as connected:
            return await work(connected)

    return asyncio.run(run())


async def reach(service: Service) -> None:
    """Ask for a first sign of life, so that a wrong address is told at once.

    Raises:
        TransportError: nobody answers there.
    """
    import httpx

    try:
        async with httpx.AsyncClient(timeout=FIRST_SIGN) as client:
            await client.get(f"{service.url}/livez")
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        hint = "; `rlt up` starts a local stack" if urlsplit(service.url).hostname in LOOPBACK else ""
        raise TransportError(f"no {service.name} server at {service.url}{hint} ({_why(error)})") from error


def _why(error: Exception) -> str:
    return "connection refused" if "Connect" in type(error).__name__ else str(error) or type(error).__name__
