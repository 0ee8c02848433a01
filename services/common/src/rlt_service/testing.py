"""For the tests of every server: an app on a real port.

with running(lambda: create_app(…)) as url:
    httpx.get(f"{url}/livez")
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from rlt_service.connections import BoundedProtocol
from rlt_service.server import BACKLOG, KEEP_ALIVE_S, Startup, listen

__all__ = ["running"]

_START_TIMEOUT_S = 120.0
"""A tiny model loads in seconds; two busy cores make it tens of seconds."""


@contextmanager
def running(app: FastAPI | Callable[[], ASGIApp]) -> Iterator[str]:
    """Serve an app, or what a factory makes, from a thread with its own event loop, and give the base URL.

    Raises what its start raised.
    """
    startup = Startup(app if isinstance(app, FastAPI) else app())
    with listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            startup,
            lifespan="on",
            http=BoundedProtocol,
            ws="none",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=_run, args=(server, listener), daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        try:
            _wait(server, startup, thread)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    with suppress(SystemExit):  # how uvicorn ends a failed start; `Startup` has its reason
        server.run(sockets=[listener])


def _wait(server: uvicorn.Server, startup: Startup, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise startup.error or RuntimeError("the app did not start")
        time.sleep(0.01)
