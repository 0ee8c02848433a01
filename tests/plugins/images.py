"""The images' Dockerfiles and locks, read as data."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*/Dockerfile"))
OWN = {
    tomllib.loads(path.read_text())["project"]["name"]: path
    for path in [*ROOT.glob("*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")]
}
LOCKED = sorted(
    path.stem for path in (ROOT / "requirements").glob("*.in") if "--constraint dev.txt" in path.read_text()
)
"""Locks that are parts of dev.txt: of the images, and of what builds them."""


OLDEST = {"python_full_version": "3.11.0"}
"""Locks are made for it: requirements/lock.sh."""


def lock(name: str) -> dict[str, str]:
    """Version by name."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().split()
    return dict(line.split("==") for line in lines)


def asked(name: str) -> list[Requirement]:
    """What a lock is made for: our own distributions by their folders, others by name."""
    lines = (ROOT / "requirements" / f"{name}.in").read_text().splitlines()
    words = [line.partition("#")[0].strip() for line in lines]
    return [_requirement(word) for word in words if word and not word.startswith("--")]


def _requirement(word: str) -> Requirement:
    folder = re.fullmatch(r"\.\./([\w/]+)(\[.*\])?", word)
    if folder is None:
        return Requirement(word)
    project = tomllib.loads((ROOT / folder[1] / "pyproject.toml").read_text())["project"]
    return Requirement(project["name"] + (folder[2] or ""))


def needed(requirements: list[Requirement]) -> set[str]:
    """Names of all that these need, and what that needs, by what each declares for this Python."""
    found: set[tuple[str, str]] = set()
    queue = list(requirements)
    while queue:
        requirement = queue.pop()
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) not in found:
                found.add(key)
                queue += _declared(requirement.name, extra)
    return {name for name, _ in found}


def _declared(name: str, extra: str) -> Iterator[Requirement]:
    lines = _own(OWN[name], extra) if name in OWN else metadata.distribution(name).requires or ()
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra, **OLDEST}):
            yield requirement


def _own(pyproject: Path, extra: str) -> list[str]:
    """From the file: what is installed here may have been so before it changed."""
    project = tomllib.loads(pyproject.read_text())["project"]
    declared: list[str] = project.get("optional-dependencies", {}).get(extra, []) if extra else project["dependencies"]
    return declared


def instructions(dockerfile: Path) -> list[str]:
    """Each instruction in one line."""
    text = re.sub(r"(?m)^\s*#.*\n", "", dockerfile.read_text())
    return [re.sub(r"\s*\\\n\s*", " ", found) for found in re.split(r"\n(?=[A-Z]+ )", text.strip())]


def final_stage(dockerfile: Path) -> list[str]:
    lines = instructions(dockerfile)
    begin = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    return lines[begin:]
