"""A backup while a build runs, everything lost, and the backup brought back: the scripts that operators use."""

from __future__ import annotations

from collections.abc import Iterator

from compose.calls import export
from compose.faults import exactly, growing, submit
from compose.stack import Failed, Stack

from rlt_client import JobsClient

__all__ = ["saved"]


def saved(stack: Stack) -> Iterator[str]:
    """What was seen, line by line.

    Raises:
        Failed: a script failed, or something is not what it was.
    """
    with JobsClient(stack.url, key=stack.key) as jobs:
        exactly(stack, jobs, submit(stack, jobs, "whole", n=2), n=2)
        before = export(stack, "whole", stack.folder / "whole.jsonl")
        build = submit(stack, jobs, "begun")
        made = growing(stack, jobs, build, 0)
        yield f"at {made} of the samples of build {build}: {stack.script('docker/backup.sh').splitlines()[-1]}"
    stack.down("--volumes", "--remove-orphans")
    yield "down: every volume is lost; secrets and backups are what is left"
    stack.script("docker/restore.sh")
    after = export(stack, "whole", stack.folder / "again.jsonl")
    if before != after:
        raise Failed(f"the export was {before}, and is {after}")
    yield f"docker/restore.sh: the same export ({after})"
    with JobsClient(stack.url, key=stack.key) as jobs:
        yield f"build {build} went on: {exactly(stack, jobs, build)}"
    yield f"rlt-jobs check: {stack.exec('jobs-api', 'rlt-jobs', 'check').strip()}"
