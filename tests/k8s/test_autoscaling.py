"""Autoscalers ask for what is there."""

from __future__ import annotations

import pytest
from k8s.manifests import OVERLAYS, find, of_kind, workloads

from rlt_reward_server.metrics import RewardMetrics
from rlt_service.metrics import Metrics


def test_the_reward_server_grows_by_a_gauge_of_its_own() -> None:
    metrics = Metrics()
    counted = RewardMetrics(metrics)
    counted.watch(passes=lambda: 3, tokens=lambda: 70_000, resting=lambda: 0)
    [metric] = find("production", "HorizontalPodAutoscaler", "reward")["spec"]["metrics"]
    assert f"\n{metric['pods']['metric']['name']} 70000.0\n" in metrics.render().decode()


def test_a_worker_is_wanted_for_as_many_shards_as_it_has_processes() -> None:
    concurrency = find("production", "ConfigMap", "rlt-jobs")["data"]["RLT_JOBS_CONCURRENCY"]
    [trigger] = find("production", "ScaledObject", "jobs-worker")["spec"]["triggers"]
    assert trigger["metadata"]["targetQueryValue"] == concurrency
    assert trigger["metricType"] == "AverageValue"


def test_the_database_is_asked_with_a_secret_of_its_own() -> None:
    authentication = find("production", "TriggerAuthentication", "jobs-backlog")
    [trigger] = find("production", "ScaledObject", "jobs-worker")["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
    assert authentication["spec"]["secretTargetRef"] == [
        {"parameter": "connection", "name": "rlt-keda", "key": "connection"}
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_number_has_one_master(overlay: str) -> None:
    """Where an autoscaler sets the number of pods, the manifest does not: every `apply` would set it back."""
    scaled = {
        each["spec"]["scaleTargetRef"]["name"] for each in of_kind(overlay, "ScaledObject", "HorizontalPodAutoscaler")
    }
    for workload in workloads(overlay):
        if workload.runs_on:
            assert ("replicas" in workload.spec) == (workload.name not in scaled)
    assert scaled <= {workload.name for workload in workloads(overlay)}
