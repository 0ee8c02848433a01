"""How long a service that fails is asked again, and that somebody is told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest

from rlt_client import _http, _waiting
from rlt_client.errors import TransportError
from rlt_client.schemas.common import Reply


@dataclass
class Clock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Service:
    """Each call takes its seconds, and then fails or, after the last failure, is answered."""

    clock: Clock
    failures: list[tuple[float, Callable[[str], Exception]]]
    asked: int = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if not self.failures:
            return httpx.Response(200, json={})
        seconds, failure = self.failures.pop(0)
        self.clock.now += seconds
        raise failure("gone")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_waiting, "time", clock)
    monkeypatch.setattr(_http, "FIRST_PAUSE", 0.0)
    return clock


async def answered(service: Service, patience: float) -> None:
    async with _http.HTTP("http://service", patience=patience, transport=httpx.MockTransport(service)) as http:
        await http.request("POST", "/work", reply=Reply)


async def test_a_service_that_was_lost_at_work_is_waited_for_as_long_as_any(clock: Clock) -> None:
    lost_twice = [(100.0, httpx.ReadError), (15.0, httpx.ConnectError)] * 2
    service = Service(clock, lost_twice)
    await answered(service, patience=20)
    assert service.asked == 5


@pytest.mark.parametrize("failure", [httpx.ConnectTimeout, httpx.ConnectError, httpx.PoolTimeout])
async def test_one_that_is_not_there_is_not_at_work_however_long_that_takes(
    clock: Clock, failure: Callable[[str], Exception]
) -> None:
    service = Service(clock, [(11.0, failure)] * 9)
    with pytest.raises(TransportError, match="gone"):
        await answered(service, patience=20)
    assert service.asked == 2


async def test_one_that_breaks_off_at_once_is_not_at_work_either(clock: Clock) -> None:
    service = Service(clock, [(9.0, httpx.ReadError)] * 9)
    with pytest.raises(TransportError, match="gone"):
        await answered(service, patience=20)
    assert service.asked == 3


async def test_that_a_service_is_waited_for_is_told_now_and_then(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rlt_client"):
        await answered(Service(clock, [(5.0, httpx.ConnectError)] * 20), patience=1_000)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "http://service is waited for, 10 s up to now: POST http://service/work: gone",
        "http://service is waited for, 70 s up to now: POST http://service/work: gone",
        "http://service answers again, after 95 s",
    ]


async def test_a_short_absence_is_not(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rlt_client"):
        await answered(Service(clock, [(4.0, httpx.ConnectError)] * 3), patience=1_000)
    assert not caplog.records
