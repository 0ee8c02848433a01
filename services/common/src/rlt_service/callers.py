"""Work stops when the caller hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response

__all__ = ["while_connected"]

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499  # nginx's word for it; nobody is there to read it


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | Response:
    """The result of `work`, which is cancelled if the connection breaks first. The body must have been read."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
