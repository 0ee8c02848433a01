"""Prometheus metrics: one registry per app, every name prefixed `rlt_`.

    metrics = Metrics()
    scored = metrics.counter("scores", "scores by outcome", ["status"])       # rlt_scores_total
    app = create_app(…, metrics=metrics)

`create_app` adds `rlt_http_requests_total` and `rlt_http_request_duration_seconds`, by route template, and the
process's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_fastapi_instrumentator.metrics import Info

__all__ = ["LATENCY_BUCKETS_S", "Metrics", "http_observer"]

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)
"""From a health check to the longest explanation."""

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""A caller may invent methods, and each would be a new series."""


class Metrics:
    """Makes metrics in a registry of its own, so that two apps in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.refresh: Callable[[], Awaitable[None]] | None = None
        """Awaited before each reading, by metrics that have to be asked for, such as of a database."""
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"rlt_{name}", doc, labels, registry=self.registry)

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"rlt_{name}", doc, labels, registry=self.registry)

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = LATENCY_BUCKETS_S
    ) -> Histogram:
        """`name` ends in its unit: `…_seconds`, `…_tokens`."""
        return Histogram(f"rlt_{name}", doc, labels, registry=self.registry, buckets=buckets)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


def http_observer(metrics: Metrics) -> Callable[[Info], None]:
    """Counts and times requests by route template; what matches no route is `none`."""
    requests = metrics.counter("http_requests", "HTTP requests by outcome", ["method", "route", "status"])
    seconds = metrics.histogram("http_request_duration_seconds", "time to the end of the reply", ["method", "route"])

    def observe(info: Info) -> None:
        method = info.method if info.method in _METHODS else "other"
        requests.labels(method, info.modified_handler, info.modified_status).inc()
        seconds.labels(method, info.modified_handler).observe(info.modified_duration)

    return observe
