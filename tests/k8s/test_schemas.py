"""Every resource of every overlay against the schemas of Kubernetes and of the operators that it is for."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from k8s.custom_schemas import kinds, problems
from k8s.manifests import OVERLAYS, find, of_kind, render

from k8s import core_schemas

VERSIONS = ["1.30", "1.32", "1.34", "1.37"]
"""The oldest that knows every field used (a preStop that sleeps), those that clouds run now, the newest schema."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_resources_are_what_kubernetes_takes(overlay: str) -> None:
    for resource in render(overlay):
        if resource["kind"] not in kinds():
            for version in VERSIONS:
                assert list(core_schemas.problems(resource, version)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_resources_are_what_their_operators_take(overlay: str) -> None:
    for resource in render(overlay):
        if resource["kind"] in kinds():
            assert list(problems(resource)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_of_groups_are_what_kubernetes_takes(overlay: str) -> None:
    for resource in of_kind(overlay, "LeaderWorkerSet"):
        group = resource["spec"]["leaderWorkerTemplate"]
        for name in ("leaderTemplate", "workerTemplate"):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": group[name]}
            for version in VERSIONS:
                assert list(core_schemas.problems(pod, version)) == []


def test_every_custom_schema_is_used() -> None:
    used = {resource["kind"] for overlay in OVERLAYS for resource in render(overlay)}
    assert set(kinds()) <= used


@pytest.mark.parametrize("version", VERSIONS)
def test_mistakes_of_our_own_are_found(version: str) -> None:
    resource = deepcopy(find("dev", "Deployment", "reward"))
    resource["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert list(core_schemas.problems(resource, version))


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("ScaledObject", "jobs-worker", ("spec", "minReplicas"), 1),  # an HPA's word
        ("ScaledObject", "jobs-worker", ("spec", "maxReplicaCount"), "16"),
        ("HTTPRoute", "platform", ("spec", "rules", 0, "timeouts", "request"), "never"),
        ("Gateway", "rlt", ("spec", "listeners", 0, "port"), 70_000),
        ("ServiceMonitor", "servers", ("spec", "endpoints", 0, "scrapeTimeout"), "ten seconds"),
        ("LeaderWorkerSet", "engine", ("spec", "leaderWorkerTemplate", "restartPolicy"), "Always"),
        ("LeaderWorkerSet", "engine", ("apiVersion",), "leaderworkerset.x-k8s.io/v1beta1"),
    ],
)
def test_mistakes_are_found(kind: str, name: str, path: tuple[Any, ...], value: object) -> None:
    resource = deepcopy(find("production-multi-node", kind, name))
    where: Any = resource
    for step in path[:-1]:
        where = where[step]
    where[path[-1]] = value
    assert list(problems(resource))
