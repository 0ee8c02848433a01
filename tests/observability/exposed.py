"""What the processes give out at /metrics, by Prometheus' job: every series' name and its labels.

Read from the processes' own registries, so that a counter that nothing has counted yet is there too.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from rlt_service.metrics import Metrics

__all__ = ["JOBS", "VLLM", "Series", "series"]

KEYS = "ann build sha256:" + "0" * 64
JOBS = ("rlt-teacher", "rlt-reward", "rlt-jobs-api", "rlt-jobs-worker", "rlt-jobs-relay")
Series = dict[str, frozenset[str]]

VLLM: Series = dict.fromkeys(
    (
        "vllm:generation_tokens_total",
        "vllm:kv_cache_usage_perc",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_queries_total",
    ),
    frozenset({"engine", "model_name"}),
)
"""Of vLLM 0.31 (vllm/v1/metrics/loggers.py), as far as they are used."""


@cache
def series(job: str) -> Series:
    """Labels by the names that samples have: `…_total`, `…_bucket`, …"""
    found: Series = {}
    for collector in _collectors(_registry(job)):
        if isinstance(collector, MetricWrapperBase):
            labels = frozenset(collector._labelnames)
            found |= {name: labels | ({"le"} if name.endswith("_bucket") else set()) for name in _names(collector)}
        else:  # the process's own
            samples = (sample for family in collector.collect() for sample in family.samples)
            found |= {sample.name: frozenset(sample.labels) for sample in samples}
    return found


def _names(metric: MetricWrapperBase) -> Iterable[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return [metric._name + suffix for suffix in suffixes[metric._type]]


def _collectors(registry: CollectorRegistry) -> Iterable[Any]:
    return list(registry._collector_to_names)


def _registry(job: str) -> CollectorRegistry:
    """As the process makes it; building an app opens nothing."""
    if job in ("rlt-jobs-worker", "rlt-jobs-relay"):
        from rlt_jobs.metrics import RelayMetrics, WorkerMetrics

        metrics = Metrics()
        (WorkerMetrics if job == "rlt-jobs-worker" else RelayMetrics)(metrics)
        return metrics.registry
    if job == "rlt-teacher":
        from rlt_teacher_server import app as teacher
        from rlt_teacher_server.settings import Settings as TeacherSettings

        return teacher.build(TeacherSettings(model="unused", keys=KEYS)).state.metrics.registry
    if job == "rlt-reward":
        from rlt_reward_server import app as reward
        from rlt_reward_server.settings import Settings as RewardSettings

        return reward.build(RewardSettings(student="unused", keys=KEYS)).state.metrics.registry
    from rlt_jobs import app as jobs
    from rlt_jobs.settings import Settings

    settings = Settings(database_url="postgresql+psycopg://unused@127.0.0.1/unused", keys=KEYS)
    return jobs.build(settings).state.metrics.registry
