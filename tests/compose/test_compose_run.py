"""With Docker Compose: what it makes of the files, and the whole run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compose.files import ROOT, load, services
from compose.stack import why_not

BASE, GPU = "docker-compose.yml", "docker-compose.gpu.yml"


def _config(*arguments: str) -> dict[str, Any]:
    command = ["docker", "compose", *arguments, "config", "--format", "json"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    except OSError as error:
        pytest.skip(f"no Docker Compose here: {error}")
    if "is not a docker command" in done.stderr or "unknown" in done.stderr.partition("\n")[0]:
        pytest.skip("no Docker Compose here")
    assert done.returncode == 0, done.stderr
    rendered: dict[str, Any] = json.loads(done.stdout)
    return rendered


def test_compose_reads_the_file_as_the_other_tests_do() -> None:
    rendered = _config("-f", BASE)["services"]
    expected = {name: given for name, given in services().items() if "profiles" not in given}
    assert set(rendered) == set(expected)
    for name, given in expected.items():
        limits = rendered[name]["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) == float(given["deploy"]["resources"]["limits"]["cpus"])
        assert rendered[name]["image"] == given["image"]
        assert set(rendered[name].get("networks") or {}) == set(given.get("networks") or ())
        assert rendered[name].get("environment", {}).keys() == (given.get("environment") or {}).keys()


def test_every_profile_renders() -> None:
    profiles = {profile for given in load(BASE)["services"].values() for profile in given.get("profiles", ())}
    rendered = _config("-f", BASE, *(word for name in sorted(profiles) for word in ("--profile", name)))
    assert set(rendered["services"]) == set(services())


def test_gpus_replace_what_they_must() -> None:
    rendered = _config("-f", BASE, "-f", GPU)["services"]
    engine, reward, models = rendered["engine"], rendered["reward"], rendered["models"]
    assert "build" not in engine
    assert engine["entrypoint"] == ["python3", "-m", "vllm.entrypoints.cli.main"]
    assert not {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"} & set(engine["environment"])
    assert engine["networks"].keys() == {"engine"}
    assert models["networks"].keys() == {"hub"}
    assert "network_mode" not in models
    assert reward["image"].endswith("-cuda")
    for name in ("engine", "reward"):
        assert rendered[name]["read_only"] is True
        assert rendered[name]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@pytest.mark.slow
@pytest.mark.timeout(10_800)  # every image is built, torch and vLLM fetched
def test_the_whole_platform_in_containers() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-m", "compose"], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert "everything is as promised" in done.stdout
