"""How much a key may ask for in a while: requests, and items, which are what its requests cost.

A request is counted before its body is read. What is in it is counted by the endpoint, with `spend`: explanations to
score, samples to make. Each process counts for itself, in a window that slides. Public paths are not counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from fastapi import Request
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from rlt_client.errors import Overloaded
from rlt_service.keys import RATE_PATTERN, Key
from rlt_service.metrics import Metrics
from rlt_service.settings import ServerSettings

__all__ = ["NO_RATES", "RateLimiter", "Rates", "spend"]

SECONDS: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}


@dataclass(frozen=True, slots=True)
class Rates:
    """Of one key. None: no limit."""

    requests: RateLimitItem | None = None
    items: RateLimitItem | None = None

    @classmethod
    def of(cls, key: Key, default: Rates) -> Self:
        """Each as the key says, else by default."""
        return cls(_rate(key.rate) or default.requests, _rate(key.items) or default.items)

    @classmethod
    def of_settings(cls, settings: ServerSettings) -> Self:
        return cls(_rate(settings.rate_limit), _rate(settings.item_limit))


NO_RATES: Final = Rates()


def _rate(text: str | None) -> RateLimitItem | None:
    if text is None:
        return None
    found = re.fullmatch(RATE_PATTERN, text)
    assert found is not None  # by those who read it
    amount, unit = found.groups()
    return RateLimitItemPerSecond(int(amount), SECONDS[unit])


class RateLimiter:
    """The counts of one process, by key."""

    def __init__(self, metrics: Metrics) -> None:
        self._counts = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._refused = metrics.counter("rate_limited", "requests refused because their key asked too much", ["limit"])

    def request(self, key_id: str, rates: Rates) -> None:
        """Raises `Overloaded` (rate_limited)."""
        self._take("requests", key_id, rates.requests, 1)

    def items(self, key_id: str, rates: Rates, count: int) -> None:
        """Raises `Overloaded` (rate_limited)."""
        self._take("items", key_id, rates.items, count)

    def _take(self, what: str, key_id: str, rate: RateLimitItem | None, count: int) -> None:
        """A request that is larger than the limit takes all of it: it passes when nothing else was asked for."""
        if rate is None or count <= 0:
            return
        cost = min(count, rate.amount)
        if not self._counts.hit(rate, what, key_id, cost=cost):
            self._refused.labels(what).inc()
            wait = self._wait(rate, what, key_id, cost)
            told = f"{rate.amount} {what} in {rate.get_expiry()} seconds are what this key may ask for"
            raise Overloaded(told, type="rate_limited", retry_after=wait)

    def _wait(self, rate: RateLimitItem, what: str, key_id: str, cost: int) -> float:
        """Seconds until there is room, if nothing else comes: the window lets go of its content evenly."""
        seconds = rate.get_expiry()
        left = self._counts.get_window_stats(rate, what, key_id).remaining
        return min(float(seconds), max(1.0, (cost - left) * seconds / rate.amount))


def spend(request: Request, items: int) -> None:
    """Count what a request asks for. Raises `Overloaded` (rate_limited)."""
    caller = request.state.principal
    limiter: RateLimiter = request.app.state.limiter
    limiter.items(caller.counted_as, caller.rates, items)
