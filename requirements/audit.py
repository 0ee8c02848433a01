"""requirements/audit.py [LOCK …]: are there advisories against what the locks name? All of them if none is named.

    0  every package of every lock was looked up, and nothing is known against it
    1  there are advisories that nobody has accepted
    2  some packages could not be looked up, with no network or by a mirror that has no advisories: no good news

An advisory that does not concern us is accepted by a line of `audit.accepted`: its id, and why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SERVICES = ("pypi", "osv")  # the second is asked for what the first does not know: mirrors serve no advisories
MOST_NAMED = 5


@dataclass
class Audit:
    looked_up: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)
    found: dict[str, list[str]] = field(default_factory=dict)
    """What is known against a package at a version, for people."""


def accepted() -> dict[str, str]:
    lines = (HERE / "audit.accepted").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#"))
    return dict(pairs)  # an id without a reason is an error


def audit(locks: Iterable[Path], service: str) -> Audit:
    audited = Audit()
    for lock in locks:
        for dependency in ask(lock, service):
            take(audited, dependency)
    return audited


def ask(lock: Path, service: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
    command += [word for id in accepted() for word in ("--ignore-vuln", id)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"exit code {done.returncode}"
        return [{"name": name, "version": "", "skip_reason": reason} for name in names(lock)]
    return found


def names(lock: Path) -> Iterator[str]:
    lines = lock.read_text(encoding="utf-8").splitlines()
    yield from (line.partition(";")[0].strip() for line in lines if "==" in line)


def take(audited: Audit, dependency: dict[str, Any]) -> None:
    name = dependency["name"] if not dependency.get("version") else f"{dependency['name']}=={dependency['version']}"
    if reason := dependency.get("skip_reason"):
        audited.unknown[name] = reason
        return
    audited.looked_up.add(name)
    for advisory in dependency["vulns"]:
        fixed = ", ".join(advisory["fix_versions"]) or "nothing yet"
        audited.found.setdefault(name, []).append(f"{advisory['id']}, fixed in {fixed}")


def best(locks: list[Path]) -> Audit:
    """Of the services the one that knows most."""
    audits = []
    for service in SERVICES:
        audits.append(audit(locks, service))
        if not audits[-1].unknown:
            break
    return max(audits, key=lambda audited: len(audited.looked_up))


def main() -> int:
    given = [HERE / f"{name}.txt" for name in sys.argv[1:]]
    locks = given or sorted(HERE.glob("*.txt"))
    audited = best(locks)
    for name, advisories in sorted(audited.found.items()):
        print(name, *dict.fromkeys(advisories), sep="\n  ")
    counts = f"{len(audited.looked_up)} packages of {len(locks)} locks looked up, {len(audited.found)} with advisories"
    print(f"{counts}, {len(accepted())} accepted")
    if audited.unknown:
        shown = ", ".join(sorted(audited.unknown)[:MOST_NAMED])
        reason = next(iter(audited.unknown.values()))
        print(f"{len(audited.unknown)} could not be looked up ({shown}, …): {reason}")
        print("This audit says nothing about them. Run it where an advisory service can be reached.")
    return 1 if audited.found else 2 if audited.unknown else 0


if __name__ == "__main__":
    sys.exit(main())
