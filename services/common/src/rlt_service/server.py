"""`serve`: one process, one app, one port.

    def main() -> None:
        settings = load(Settings, prog="rlt-reward-server")
        serve(lambda: build(settings), settings, prog="rlt-reward-server")

Exit codes: 0 after SIGTERM or Ctrl-C once running requests are done; 1 with one line on stderr for what the user can
mend (a port in use, no keys for a wide address, a model that is not there); 3 with a traceback for a bug at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlt_client.errors import RLTError
from rlt_service import logs, telemetry
from rlt_service.auth import Authenticator
from rlt_service.connections import BoundedProtocol
from rlt_service.draining import Drainable, DrainingServer
from rlt_service.settings import ServerSettings

__all__ = ["BACKLOG", "KEEP_ALIVE_S", "CannotListen", "Startup", "check_bind", "listen", "raise_file_limit", "serve"]

log = logging.getLogger(__name__)

BACKLOG = 4096
"""Trainers open thousands of short connections at once; the kernel caps it at `net.core.somaxconn`."""
KEEP_ALIVE_S = 75
"""Of a connection that rests: longer than clients and proxies keep theirs, so that they close first."""


class CannotListen(RLTError):
    """The address cannot be had, or must not."""


def serve(
    app_factory: Callable[[], FastAPI],
    settings: ServerSettings,
    *,
    prog: str | None = None,
    refusals: Callable[[ASGIApp], ASGIApp] | None = None,
) -> NoReturn:
    """Run until a signal, then exit. `app_factory` must be cheap: what takes long belongs into the app's lifespan.

    Args:
        refusals: a middleware of the app that rewrites refusals, for those that are given while it stops.
    """
    name = prog or Path(sys.argv[0]).name
    logs.configure(settings.log_level, settings.log_format, service=name)
    try:
        with _exit_on_sigterm():
            sys.exit(_run(app_factory, settings, refusals))
    except RLTError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:  # while the app was built
        sys.exit(130)


def _run(
    app_factory: Callable[[], FastAPI],
    settings: ServerSettings,
    refusals: Callable[[ASGIApp], ASGIApp] | None,
) -> int:
    app = app_factory()
    check_bind(settings, app.state.auth)
    telemetry.start(app.title, app.version)
    raise_file_limit()
    startup = Startup(app)
    drainable = Drainable(startup, refusals) if refusals else Drainable(startup)
    with listen(settings.host, settings.port) as listener:
        log.info("listening", extra={"url": _url(listener), "app": app.title, "version": app.version})
        server = DrainingServer(_config(drainable, settings), drainable, grace=settings.shutdown_grace_s)
        try:
            server.run(sockets=[listener])
        except (KeyboardInterrupt, SystemExit):  # uvicorn raises the signal again, after a graceful end
            if not server.started and startup.error is None:
                raise
        except asyncio.CancelledError:  # a signal broke the start off
            raise SystemExit(128 + server.signalled) from None
    if isinstance(startup.error, RLTError):
        raise startup.error
    return 0 if startup.error is None else 3


def _config(app: ASGIApp, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        backlog=BACKLOG,
        lifespan="on",
        http=BoundedProtocol,
        ws="none",
        proxy_headers=False,  # nothing is decided by what they say
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
    )


def check_bind(settings: ServerSettings, auth: Authenticator) -> None:
    """Raises `CannotListen` where callers need no key, the address is not loopback, and nobody said so is meant."""
    if auth.anonymous and auth.loopback_only and not _is_loopback(settings.host):
        prefix = settings.model_config.get("env_prefix") or ""
        raise CannotListen(
            f"{settings.host} can be reached from outside, and there are no keys: "
            f"give {prefix}KEYS_FILE (see `rlt keys create`), or set {prefix}ALLOW_ANONYMOUS=1 to serve everyone"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `CannotListen` with one line that says why not."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)  # `localhost` is 127.0.0.1
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    """The system's own words; `create_server` appends to them. Failed look-ups have negative numbers."""
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or str(error)


def raise_file_limit() -> None:
    """Every connection is an open file; the soft limit is often 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some containers forbid it, and then serve fewer
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """While the app is built, SIGTERM ends the process as an exception does: with its clean-up."""
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Startup:
    """Keeps the error of a failed start. One that the user can mend then needs no traceback: `serve` tells it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        failures: list[Message] = []

        async def hold_back(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                failures.append(message)
            else:
                await send(message)

        try:
            await self.app(scope, receive, hold_back)
        except asyncio.CancelledError:  # by a signal: nothing that needs a traceback
            if not failures:
                raise
            await send({"type": "lifespan.startup.failed", "message": ""})
        except Exception as error:
            if not failures:  # it failed later, at shutdown
                raise
            self.error = error
            text = "" if isinstance(error, RLTError) else failures[0]["message"]
            await send({"type": "lifespan.startup.failed", "message": text})
