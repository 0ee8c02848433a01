"""What the manifests tell the programs is what the programs read, and fits what the manifests say of the pods."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from k8s.manifests import OVERLAYS, ROOT, Workload, find, workloads
from plugins.deployed import settings_in, unknown_variables

from rlt_jobs.settings import Settings as JobsSettings
from rlt_service import secrets
from rlt_service.settings import ServerSettings
from rlt_teacher_server.launch.command import Address, Flags, command
from rlt_teacher_server.settings import Settings as TeacherSettings

SERVER = {"jobs-api": "jobs", "jobs-relay": "jobs", "jobs-worker": "jobs"} | {
    each: each for each in ("teacher", "reward")
}
PROGRAMS = {
    "jobs-api": ["rlt-jobs", "api"],
    "jobs-relay": ["rlt-jobs", "relay"],
    "jobs-worker": ["rlt-jobs", "worker"],
    "migrate": ["rlt-jobs", "migrate"],
    "teacher": ["rlt-teacher-server"],
    "reward": ["rlt-reward-server"],
    "models": ["rlt-trainer", "models", "/models"],
}
AFTERWARDS = 10  # seconds a server takes to end once its requests have


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secrets as their one-shot makes them: a folder for each Secret."""
    folder = tmp_path_factory.mktemp("secrets")
    secrets.prepare(folder)
    return folder


def environment(workload: Workload) -> dict[str, str]:
    """Of the container, its ConfigMaps included; what comes from Secrets is left out."""
    found: dict[str, str] = {}
    for source in workload.container.get("envFrom", ()):
        if "configMapRef" in source:
            found |= find(workload.overlay, "ConfigMap", source["configMapRef"]["name"])["data"]
    found |= {each["name"]: each["value"] for each in workload.container.get("env", ()) if "value" in each}
    return found


def settings_of(patch: pytest.MonkeyPatch, workload: Workload, made: Path) -> ServerSettings:
    [volume] = [each["secret"] for each in workload.pod["volumes"] if "secret" in each]
    folder = made / volume["secretName"].removeprefix("rlt-")
    return settings_in(patch, SERVER[workload.name], environment(workload), {}, folder)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_are_those_of_their_programs(overlay: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for workload in workloads(overlay):
        if workload.name in SERVER:
            assert unknown_variables(SERVER[workload.name], environment(workload)) == set()
            settings = settings_of(monkeypatch, workload, made)
            metrics = "relay_metrics_port" if workload.name == "jobs-relay" else "metrics_port"
            ports = {"http": settings.port, "metrics": getattr(settings, metrics, None)}
            assert {name: ports[name] for name in workload.ports()} == workload.ports()
            assert settings.host == "0.0.0.0" or "http" not in workload.ports()
            assert settings.keys, "its secret has the keys that it accepts"
            seen.add(workload.name)
        else:
            ours = {name for name in environment(workload) if name.startswith("RLT_")}
            assert ours <= {f"RLT_{role}_{what}" for role in ("TEACHER", "STUDENT") for what in ("MODEL", "REVISION")}
    assert seen == set(SERVER)


def test_secrets_hold_nothing_that_no_program_reads(made: Path) -> None:
    from plugins.deployed import SETTINGS

    for server, cls in SETTINGS.items():
        prefix = cls.model_config.get("env_prefix") or ""
        fields = {f"{prefix}{field}".lower() for field in cls.model_fields}
        read = fields | ({"aws_credentials"} if server == "jobs" else set())  # by the S3 client, of component s3
        assert {file.name for file in (made / server).iterdir()} <= read


def test_programs_are_started_by_their_names() -> None:
    for overlay in OVERLAYS:
        for workload in workloads(overlay):
            name = "migrate" if workload.name.startswith("migrate-") else workload.name
            if name in PROGRAMS:
                assert workload.container["command"] == PROGRAMS[name]


def test_traced_processes_are_told_the_same_collector() -> None:
    collectors = {
        name: environment(each).get("OTEL_EXPORTER_OTLP_ENDPOINT")
        for name, each in {each.name: each for each in workloads("production")}.items()
    }
    assert len({collectors[name] for name in SERVER}) == 1
    assert {name for name, address in collectors.items() if address} == set(SERVER)


def test_servers_end_before_they_are_killed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """preStop, then the requests under way, then the end."""
    for overlay in OVERLAYS:
        for workload in workloads(overlay):
            if workload.name in ("teacher", "reward", "jobs-api"):
                settings = settings_of(monkeypatch, workload, made)
                before = workload.container["lifecycle"]["preStop"]["sleep"]["seconds"]
                assert before >= 5, "proxies learn of it by then"
                assert workload.pod["terminationGracePeriodSeconds"] >= before + settings.shutdown_grace_s + AFTERWARDS


def test_workers_give_back_what_they_hold_or_lose_it(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are enough to give leases back; who needs longer than a lease has none any more."""
    for overlay in OVERLAYS:
        [worker] = [each for each in workloads(overlay) if each.name == "jobs-worker"]
        settings = settings_of(monkeypatch, worker, made)
        assert isinstance(settings, JobsSettings)
        grace = worker.pod["terminationGracePeriodSeconds"]
        assert settings.control_seconds + settings.flush_seconds + settings.heartbeat_seconds < grace
        assert grace <= settings.lease_seconds


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_teacher_knows_every_engine(overlay: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that a StatefulSet, or a LeaderWorkerSet, gives them through the headless Service."""
    found = {each.name: each for each in workloads(overlay)}
    engine = found["engine"]
    service = find(overlay, "Service", "engine")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    settings = settings_of(monkeypatch, found["teacher"], made)
    assert isinstance(settings, TeacherSettings)
    assert settings.engine == [f"http://engine-{i}.engine:8000" for i in range(engine.spec["replicas"])]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_servers_are_told_each_other_s_services(overlay: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {each.name: each for each in workloads(overlay)}
    jobs = settings_of(monkeypatch, found["jobs-worker"], made)
    teacher = settings_of(monkeypatch, found["teacher"], made)
    assert isinstance(jobs, JobsSettings)
    assert isinstance(teacher, TeacherSettings)
    asked = {"teacher": {jobs.teacher_url}, "reward": {jobs.reward_url, teacher.reward_url}}
    for name, urls in asked.items():
        [port] = find(overlay, "Service", name)["spec"]["ports"]
        assert urls == {f"http://{name}:{port['port']}"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_engines_are_told_what_those_are_that_the_teacher_starts(overlay: str) -> None:
    for workload in workloads(overlay):
        if workload.label != "rlt-engine":
            continue
        on_cpu = "engine-cpu" in workload.container["image"]
        flags = Flags(
            Path("/models/teacher"),
            device="cpu" if on_cpu else "gpu",
            served_name="teacher",
            cache_mib=256 if on_cpu else None,
        )
        ours = command(Path("python3"), flags, Address(port=8000))
        args, env = workload.container["args"], environment(workload)
        assert workload.container["command"] == list(ours.argv[:3])
        wanted = list(joined(ours.argv[3:]))
        wanted[wanted.index("--host=127.0.0.1")] = "--host=0.0.0.0"
        if workload.headless:
            wanted = [each for each in wanted if not each.startswith(("--host", "--port"))]
        assert args[: len(wanted)] == wanted
        host = ours.env["VLLM_HOST_IP"] if workload.kind == "StatefulSet" else None
        told = ours.env | {"VLLM_HOST_IP": host}
        told.pop("PYTHONPATH", None)  # the image has one of itself
        assert {name: env.get(name) for name in told} == told


def joined(argv: tuple[str, ...]) -> list[str]:
    """Flags with their values, each as one word."""
    words: list[str] = []
    for word in argv:
        if words and words[-1].startswith("--") and "=" not in words[-1] and not word.startswith("--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def test_groups_divide_an_engine_by_their_machines() -> None:
    engine = find("production-multi-node", "LeaderWorkerSet", "engine")
    size = engine["spec"]["leaderWorkerTemplate"]["size"]
    for workload in workloads("production-multi-node"):
        if workload.label == "rlt-engine":
            given = dict(each.split("=", 1) for each in workload.container["args"] if "=" in each)
            assert int(given["--pipeline-parallel-size"]) == size
            assert given["--tensor-parallel-size"] == workload.container["resources"]["limits"]["nvidia.com/gpu"]
            assert given["--nnodes"] == "$(LWS_GROUP_SIZE)"
            assert ("--headless" in workload.container["args"]) == workload.headless


@pytest.mark.parametrize("overlay", ["dev", "single-gpu"])
@pytest.mark.parametrize(("service", "file"), [("postgres", "init.sh"), ("redis", "redis.conf")])
def test_databases_are_set_up_as_compose_s(overlay: str, service: str, file: str) -> None:
    data: Mapping[str, Any] = find(overlay, "ConfigMap", f"rlt-{service}")["data"]
    assert data[file] == (ROOT / "docker" / service / file).read_text(encoding="utf-8")


def test_the_databases_secrets_are_those_that_they_read(made: Path) -> None:
    for workload in workloads("dev"):
        if workload.name in ("postgres", "redis"):
            text = str(workload.container) + str(find("dev", "ConfigMap", f"rlt-{workload.name}")["data"])
            read = set(re.findall(r"/run/secrets/([\w.]+)", text))
            assert read
            assert read <= {file.name for file in (made / workload.name).iterdir()}
