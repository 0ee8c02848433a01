"""Where the time of one request went. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rlt_client.schemas.common import Timing

__all__ = ["split"]


def split(began: float, ended: float, jobs: Iterable[tuple[float, float, float]]) -> Timing:
    """Three phases that add up to the whole, from (enqueued, started, finished) of each job of the engine; seconds.

    Engine is the time in which at least one job ran; queue is the rest of the time from the first job that was queued
    to the last that was finished; overhead is everything else.
    """
    jobs = sorted(jobs, key=lambda moments: moments[1])
    if not jobs:
        return Timing(queue_ms=0, engine_ms=0, overhead_ms=(ended - began) * 1e3)
    engine, until = 0.0, float("-inf")
    for _, started, finished in jobs:
        engine += max(0.0, finished - max(started, until))
        until = max(until, finished)
    away = until - min(enqueued for enqueued, _, _ in jobs)
    overhead = ended - began - away
    return Timing(queue_ms=max(0.0, away - engine) * 1e3, engine_ms=engine * 1e3, overhead_ms=max(0.0, overhead) * 1e3)
