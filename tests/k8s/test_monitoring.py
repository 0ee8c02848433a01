"""What Prometheus and Grafana are given is all there is, and finds what it is for."""

from __future__ import annotations

from typing import Any

import yaml
from k8s.manifests import K8S, find, of_kind, workloads

OVERLAY = "production"
MONITORING = K8S / "components" / "monitoring"


def test_grafana_is_given_every_dashboard() -> None:
    config = find(OVERLAY, "ConfigMap", "rlt-dashboards")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    there = {file.name: file.read_text(encoding="utf-8") for file in (MONITORING / "dashboards").glob("*.json")}
    assert config["data"] == there
    assert sum(map(len, there.values())) < 250_000, "kubectl keeps what it applied in an annotation of 256 KiB"


def test_prometheus_is_given_the_rules() -> None:
    rules = find(OVERLAY, "PrometheusRule", "rlt")
    assert rules["spec"] == yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["spec"]


def monitored(monitor: dict[str, Any], labels: dict[str, str]) -> bool:
    selector = monitor["spec"]["selector"]
    terms = selector.get("matchExpressions", ())
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(labels.get(each["key"]) in each["values"] for each in terms)


def test_everything_that_counts_is_read_once() -> None:
    """A port named http or metrics, by exactly one monitor; the job that its series carry is its label."""
    pods, services = of_kind(OVERLAY, "PodMonitor"), of_kind(OVERLAY, "ServiceMonitor")
    fronted = {each["spec"]["selector"]["app.kubernetes.io/name"]: each for each in of_kind(OVERLAY, "Service")}
    for workload in workloads(OVERLAY):
        labels = workload.template["metadata"]["labels"]
        ports = [end["port"] for each in pods if monitored(each, labels) for end in each["spec"]["podMetricsEndpoints"]]
        if workload.label in fronted:
            own = fronted[workload.label]["metadata"]["labels"]
            ports += [end["port"] for each in services if monitored(each, own) for end in each["spec"]["endpoints"]]
        assert ports == list(workload.ports()), workload.name
    assert {each["spec"]["jobLabel"] for each in pods + services} == {"app.kubernetes.io/name"}
