"""Prometheus metrics: one registry per app, every name prefixed `rlt_`.

    metrics = Metrics()
    scored = metrics.counter("scores", "scores by outcome", ["status"])       # rlt_scores_total
    app = create_app(…, metrics=metrics)

`create_app` adds `rlt_http_requests_total` and `rlt_http_request_duration_seconds`, by route template, and the
process's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

__all__ = ["LATENCY_BUCKETS_S", "Metrics"]

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)
"""From a health check to the longest explanation."""


class Metrics:
    """Makes metrics in a registry of its own, so that two apps in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
