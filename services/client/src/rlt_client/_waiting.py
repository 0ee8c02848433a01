"""For how long a service that fails is asked again, and that somebody is told."""

from __future__ import annotations

import logging
import time
from typing import Final

import httpx

from rlt_client.errors import Timeout

__all__ = ["CONNECT_S", "Absence", "Patience"]

CONNECT_S: Final = 10.0
NEVER_THERE: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, Timeout)
"""Failures that may take long though nobody was at work: of connecting, and a proxy's 504."""

log = logging.getLogger("rlt_client")


class Patience:
    """Of one call. It begins anew where a service is lost that had been at work."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = self._asked = time.monotonic()

    def asks(self) -> None:
        self._asked = time.monotonic()

    def begins_anew(self, failure: Exception) -> bool:
        """Whether it does, for what the last attempt ended with."""
        now = time.monotonic()
        anew = now - self._asked > CONNECT_S and not isinstance(failure, NEVER_THERE)
        if anew:
            self._since = now
        return anew

    def lasts(self, seconds: float) -> bool:
        """For a pause of so many seconds."""
        return time.monotonic() + seconds < self._since + self._seconds


class Absence:
    """Of one service: the log says that it is waited for, now and then, however many calls wait."""

    SILENT_S: Final = 10.0
    EVERY_S: Final = 60.0

    def __init__(self, service: str) -> None:
        self._service = service
        self._since: float | None = None
        self._told: float | None = None

    def goes_on(self, reason: object) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= self.SILENT_S and (self._told is None or now - self._told >= self.EVERY_S):
            self._told = now
            log.warning("%s is waited for, %.0f s up to now: %s", self._service, now - self._since, reason)

    def over(self) -> None:
        if self._since is not None and self._told is not None:
            log.warning("%s answers again, after %.0f s", self._service, time.monotonic() - self._since)
        self._since = self._told = None
