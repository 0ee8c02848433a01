"""How a server ends. From SIGTERM on new requests are refused with 503 `stopping`, so that a client or a load balancer
goes elsewhere at once instead of finding a closed port; requests under way are finished and answered; then the process
ends. Ctrl-C closes the port first. A start that still goes on, which may take half an hour, is broken off by either."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from rlt_service.access import STOPPING
from rlt_service.problems import error_response

__all__ = ["Drainable", "DrainingServer", "is_closing"]

_SELF = "rlt_service.drainable"  # where a request's scope holds the `Drainable` that counts it

STILL_ANSWERED: Final = frozenset({"/livez", "/metrics"})  # the process lives, and its last figures are wanted


def _as_it_is(app: ASGIApp) -> ASGIApp:
    return app


class Drainable:
    """Counts the requests under way, and refuses new ones once `closing`.

    Args:
        refusals: a middleware that rewrites refusals as the app's own middleware would.
    """

    def __init__(self, app: ASGIApp, refusals: Callable[[ASGIApp], ASGIApp] = _as_it_is) -> None:
        self.app = app
        self._refusals = refusals
        self.closing = False
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif self.closing and scope["path"] not in STILL_ANSWERED:
            response = error_response(STOPPING)
            response.headers["connection"] = "close"
            await self._refusals(response)(scope, receive, send)
        else:
            await self._count(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_SELF] = self
        self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1


def is_closing(scope: Scope) -> bool:
    """Whether the server of this request stops: a reply without an end of its own ends now, or it holds up the rest."""
    counted = scope.get(_SELF)
    return isinstance(counted, Drainable) and counted.closing


class DrainingServer(uvicorn.Server):
    """Args:
    grace: seconds that requests under way get after the signal.
    """

    def __init__(self, config: uvicorn.Config, app: Drainable, *, grace: float) -> None:
        super().__init__(config)
        self._app = app
        self._grace = grace
        self._deadline = 0.0
        self._starting: asyncio.Task[object] | None = None
        self.signalled = 0
        """The signal that broke the start off."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._starting = asyncio.current_task()
        await super().startup(sockets)
        self._starting = None
        _collect_less_often()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._starting is not None:
            self.signalled = sig
            self._starting.get_loop().call_soon_threadsafe(self._starting.cancel)  # a handler runs between two lines
        if sig != signal.SIGTERM or not self.started or self._app.closing:
            super().handle_exit(sig, frame)
            return
        self._app.closing = True
        self._deadline = time.monotonic() + self._grace

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._drained()

    def _drained(self) -> bool:
        """Whether nothing is under way any more, or the grace is over: uvicorn then breaks off what is left."""
        if not self._app.closing:
            return False
        left = self._deadline - time.monotonic()
        if self._app.running and left > 0:
            return False
        self.config.timeout_graceful_shutdown = max(0, int(left))
        return True


def _collect_less_often() -> None:
    """What a start has made lives as long as the process: each full collection would go through it, with every request
    waiting. And of the many small things that requests make, hardly any hold each other in circles: with Python's own
    700 the collector took a tenth of a busy process's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
