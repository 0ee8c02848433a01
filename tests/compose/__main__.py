"""`make compose-test`: the whole platform in containers: built, used, attacked, killed, lost, trained with, replaced.

Everything stands in a project of its own and is gone at the end, volumes too. Images stay.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from compose.attack import Finding, attack
from compose.calls import demo
from compose.faults import killed, restarted
from compose.rolling import rolled
from compose.saving import saved
from compose.stack import Failed, Stack, why_not
from compose.training import trained

STEPS = {"demo": demo, "killed": killed, "restarted": restarted, "saved": saved, "trained": trained, "rolled": rolled}
ATTACK = "attack"
ORDER = ("demo", ATTACK, "killed", "restarted", "saved", "trained", "rolled")


class Telling:
    """Says each line as it comes, with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, line: str) -> None:
        sys.stdout.write(f"{time.monotonic() - self._start:7.1f} s  {line}\n")
        sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make compose-test", description=__doc__)
    parser.add_argument("--project", default="rlt-test", help="name of the Compose project (rlt-test)")
    parser.add_argument("--no-build", action="store_true", help="take the images that are there")
    parser.add_argument(
        "--folder", type=Path, help="for its secrets and settings, such as that of a stack that was kept"
    )
    parser.add_argument("--keep", action="store_true", help="leave the stack up at the end")
    parser.add_argument("--only", choices=ORDER, action="append", help="not every step")
    args = parser.parse_args()
    reason = why_not()
    if reason:
        sys.stderr.write(f"no container can be run here: {reason}\n")
        return 1
    folder = args.folder or Path(tempfile.mkdtemp(prefix="rlt-compose-"))
    return _run(Stack(args.project, folder), args, Telling())


def _run(stack: Stack, args: argparse.Namespace, say: Telling) -> int:
    try:
        if not args.no_build:
            say("building every image")
            stack.build()
        say("docker compose up --wait")
        stack.up()
        say(f"every service is healthy, at {stack.url}; secrets in {stack.secrets}")
        wrong = sum(_step(stack, name, say) for name in (args.only or ORDER))
    except Failed as failure:
        say(f"FAILED: {failure}")
        wrong = 1
    finally:
        if not args.keep:
            stack.down("--volumes", "--remove-orphans", "--timeout", "60")
            say("taken down, volumes too")
            if not args.folder:
                shutil.rmtree(stack.folder)  # keys of what is no more
    say("everything is as promised" if not wrong else f"{wrong} things are not as promised")
    return 1 if wrong else 0


def _step(stack: Stack, name: str, say: Telling) -> int:
    say(f"== {name}")
    if name == ATTACK:
        return _table(attack(stack), say)
    for line in STEPS[name](stack):
        say(line)
    return 0


def _table(findings: Iterable[Finding], say: Telling) -> int:
    """Prints who × what, expected and found; how many differ."""
    wrong = 0
    for finding in findings:
        wrong += finding.wrong
        for line in _line(finding):
            say(line)
    return wrong


def _line(finding: Finding) -> Iterator[str]:
    yield (
        f"{'WRONG' if finding.wrong else 'ok':5}  {finding.who:12} {finding.what:70} {finding.found}"
        f"{f'  (expected {finding.expected})' if finding.wrong else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
