"""A request whose reply is read while it is made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Self

from rlt_client.errors import APIError, InternalError
from rlt_client.schemas.common import Problem
from rlt_client.schemas.explain import Done, ExplainEvent, ExplainResponse, Failed
from rlt_teacher_server.explain.events import Mailbox

__all__ = ["ExplainStream", "Work"]

log = logging.getLogger(__name__)

Work = Callable[[Mailbox], Coroutine[Any, Any, ExplainResponse]]


class ExplainStream:
    """Events from `started` on; the last is `done` or `failed`. Close it: that stops what is not finished.

    async with aclosing(await service.stream(request)) as stream:
        async for event in stream: …

    `take` gives all events that are due together, for those who write them into one socket.
    """

    def __init__(self, mailbox: Mailbox, work: Work, while_open: AbstractContextManager[object]) -> None:
        self._open = ExitStack()
        self._open.enter_context(while_open)
        self._mailbox = mailbox
        self._ready: list[ExplainEvent] = []
        self._ended = False
        self._error: Exception | None = None
        self._work = asyncio.create_task(self._tell(work))

    @classmethod
    async def open(cls, mailbox: Mailbox, work: Work, while_open: AbstractContextManager[object]) -> Self:
        """Returns when `work` has told that it started. Raises what it raised before that."""
        stream = cls(mailbox, work, while_open)
        try:
            await stream._begin()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def _begin(self) -> None:
        self._ready = await self._mailbox.take()
        if self._error is not None and isinstance(self._ready[0], Failed):
            raise self._error

    async def take(self, timeout: float | None = None) -> list[ExplainEvent]:
        """What has happened since the last call, as soon as there is something: all of it together.

        Nothing where nothing happens for `timeout` seconds, and after the last event.
        """
        if self._ended:
            return []
        events = self._ready or await self._mailbox.take(timeout)
        self._ready = []
        self._ended = bool(events) and isinstance(events[-1], Done | Failed)
        return events

    @property
    def ended(self) -> bool:
        """Whether the last event was taken."""
        return self._ended

    async def __aiter__(self) -> AsyncIterator[ExplainEvent]:
        while not self._ended:
            for event in await self.take():
                yield event

    async def aclose(self) -> None:
        """Returns when everything that was begun for it has stopped."""
        self._work.cancel()
        try:
            await asyncio.wait([self._work])
        finally:
            self._open.close()

    async def _tell(self, work: Work) -> None:
        try:
            self._mailbox.put(Done(response=await work(self._mailbox)))
        except Exception as error:
            self._error = error
            self._mailbox.put(Failed(problem=_problem(error)))


def _problem(error: Exception) -> Problem:
    """As an ordinary reply would tell it: nothing of what nobody expected."""
    if isinstance(error, APIError):
        return error.problem()
    log.error("a streamed request failed", exc_info=error)
    return InternalError().problem()
