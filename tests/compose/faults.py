"""A build while what makes it is killed, and the whole stack taken down and up: nothing lost, nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from compose.calls import PROBLEMS, export, inline, problems
from compose.stack import Failed, Stack

from rlt_client import BuildRequest, JobsClient
from rlt_client.schemas.builds import BuildState, Selection, SelectionMode

__all__ = ["N", "ended", "exactly", "growing", "killed", "restarted", "submit"]

STRUCK = ("jobs-worker", "reward", "redis", "postgres")
N = 24
ENDED = frozenset({BuildState.done, BuildState.failed, BuildState.cancelled})
DATASET = "killed"
BUILD_SECONDS = 1800


def killed(stack: Stack) -> Iterator[str]:
    """What was seen, line by line.

    Raises:
        Failed: a sample is missing or there twice, or the store is not whole.
    """
    with JobsClient(stack.url, key=stack.key) as jobs:
        build = submit(stack, jobs, DATASET)
        seen = 0
        for service in STRUCK:
            seen = growing(stack, jobs, build, seen)
            stack.strike(service)
            yield f"killed {service} at {seen} of {PROBLEMS * N} samples"
        yield exactly(stack, jobs, build)
    for service in STRUCK:
        stack.until(lambda name=service: stack.healthy(name), f"{service} to be healthy again")
    yield f"rlt-jobs check: {stack.exec('jobs-api', 'rlt-jobs', 'check').strip()}"


def submit(stack: Stack, jobs: JobsClient, dataset: str, n: int = N) -> int:
    """The id of a build of `n` samples for each of the problems, all of them kept."""
    request = BuildRequest(
        dataset=dataset, problems=inline(problems(stack)), n=n, selection=Selection(mode=SelectionMode.all)
    )
    return jobs.create_build(request).id


def growing(stack: Stack, jobs: JobsClient, build: int, seen: int) -> int:
    """Samples made, once there are more than `seen`; the build must not be over."""
    found = [seen]

    def grown() -> bool:
        counts = jobs.build(build).counts
        found.append(counts.samples - counts.missing)
        return found[-1] > seen

    stack.until(grown, f"more than {seen} samples", BUILD_SECONDS)
    if found[-1] >= PROBLEMS * N:
        raise Failed("the build was over too early")
    return found[-1]


def ended(jobs: JobsClient, build: int) -> bool:
    return jobs.build(build).state in ENDED


def exactly(stack: Stack, jobs: JobsClient, build: int, n: int = N) -> str:
    """Wait for the end of a build, and say that every sample is there once.

    Raises:
        Failed: one is missing or there twice, or the build is not done.
    """
    stack.until(lambda: ended(jobs, build), f"build {build} to end", BUILD_SECONDS)
    found = jobs.build(build)
    if found.state is not BuildState.done:
        raise Failed(f"the build is {found.state}: {found.error}")
    made = Counter((row.problem, row.sample) for row in jobs.samples(build, page=500))
    wanted = {(problem, sample) for problem in range(PROBLEMS) for sample in range(n)}
    if set(made) != wanted or set(made.values()) != {1}:
        twice = [key for key, count in made.items() if count > 1]
        raise Failed(
            f"{len(wanted - set(made))} samples missing, {len(set(made) - wanted)} too many, {twice[:5]} twice"
        )
    return f"{PROBLEMS} problems × {n} samples: every one of {len(wanted)} once"


def restarted(stack: Stack) -> Iterator[str]:
    """Take everything down but the volumes, and up again.

    Raises:
        Failed: something is not what it was.
    """
    file = stack.folder / "before.jsonl"
    before, key = export(stack, DATASET, file), stack.key
    stack.down()
    yield "down: no container and no network is left"
    stack.up()
    after = export(stack, DATASET, stack.folder / "after.jsonl")
    if (before, key) != (after, stack.key):
        raise Failed(f"the export was {before}, and is {after}")
    yield f"up again: the same key, the same export ({after})"
    yield f"rlt-jobs check: {stack.exec('jobs-api', 'rlt-jobs', 'check').strip()}"
