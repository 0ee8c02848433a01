"""A rolling restart of everything while a build runs and people use the stack: an update as an orchestrator makes it.

Servers, relays and workers are replaced one by one: the new one is started, waited for and given the address before the
old one gets SIGTERM. Postgres and Redis are one each, so they end (cleanly) and start again.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chaos.checks import Expected, ask, store_wrong, wrong
from chaos.parts import Part, python
from chaos.stand_in import said
from chaos.visitors import Addresses, N, Seen, Visitors
from chaos.way import Way
from chaos.world import LATENCY, World, answers

from rlt_jobs.builds.spec import sample_seed
from rlt_local.databases import Program
from rlt_local.ports import free

__all__ = ["ORDER", "Rolled", "rolling"]

ORDER = ("api", "relay-1", "relay-2", "worker-1", "worker-2", "teacher", "reward", "valkey", "postgres")
BEHIND = ("api", "teacher", "reward")
"""What clients reach through an address that stays."""
CLEAN = {"valkey": signal.SIGTERM, "postgres": signal.SIGINT}  # the latter: fast, which ends sessions
GRACE = 240.0  # seconds that a process gets after SIGTERM: 60 in our manifests, whose machines are not so busy
READY = 120.0  # seconds for a process to start, on a busy machine
ENDED = ("done", "failed", "cancelled")
AFTERWARDS = 600.0  # seconds for the builds to end, on a busy machine
MORE = 150  # problems of a build that follows the main one
FIRST = 20  # problems of the build whose version is downloaded throughout
SEED = 11


@dataclass
class Rolled:
    """What a run did and found.

    Args:
        ends: seconds that each process took to end after its signal.
        during: restarts that were made while the main build ran; others were made while one that followed it did.
    """

    restarts: int = 0
    during: int = 0
    samples: int = 0
    ends: dict[str, list[float]] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        ends = ", ".join(f"{name} {max(seconds):.1f}" for name, seconds in self.ends.items())
        return [
            f"{self.restarts} restarts, {self.during} while the build ran; {self.samples} samples",
            f"seconds from the signal to the end, at most: {ends}",
            *(
                f"{name}: {seen.calls} calls, {len(seen.wrong)} wrong, slowest {seen.longest:.1f} s; single replies "
                f"{dict(sorted(seen.statuses.items()))}, broken {seen.broken}"
                for name, seen in self.seen.items()
            ),
        ]


class RollingWorld(World):
    """Each server behind a way of its own, and a replacement for whatever is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ways = {name: Way() for name in BEHIND}
        self._stack = ExitStack()
        self._lives = 0

    def __enter__(self) -> Self:
        for way in self._ways.values():
            self._stack.enter_context(way)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._stack.close()

    @property
    def addresses(self) -> Addresses:
        return Addresses(*(self._ways[name].url for name in ("api", "teacher", "reward")))

    def _programs(self) -> list[Program]:
        self.api = self._ways["api"].url
        self.env = {
            **self._settings(0, 0, 0),
            "RLT_JOBS_TEACHER_URL": self._ways["teacher"].url,
            "RLT_JOBS_REWARD_URL": self._ways["reward"].url,
        }
        return [self._made(name) for name in ("teacher", "reward", *self._names)]

    def _made(self, name: str) -> Program:
        """A new one, on a port of its own; its address leads to it once it is ready."""
        self._lives += 1
        [port] = free()
        if name in ("teacher", "reward"):
            ready, program = self._reached(name, port), ("chaos.stand_in", str(port), str(LATENCY), self.host)
            return python(*program, name=name, cwd=self.folder, env={}, ready=ready)
        beat = self.folder / f"{name}-{self._lives}.beat"
        env = {**self.env, "RLT_JOBS_PORT": str(port), "RLT_JOBS_HEARTBEAT_FILE": str(beat)}
        ready = self._reached(name, port) if name == "api" else beat.exists
        return python("rlt_jobs", name.partition("-")[0], name=name, cwd=self.folder, env=env, ready=ready)

    def _reached(self, name: str, port: int) -> Callable[[], bool]:
        def ready() -> bool:
            if not answers(f"http://127.0.0.1:{port}/readyz"):
                return False
            self._ways[name].ports = [port]
            return True

        return ready

    def replace(self, name: str) -> float:
        """Seconds that the old one took to end. Raises `TimeoutExpired` for one that would have been killed."""
        old = self.parts[name]
        if name in CLEAN:
            seconds = _end(old, CLEAN[name])
            old.start()
            old.wait_ready(READY)
            return seconds
        new = self._add(self._made(name))
        new.start()
        new.wait_ready(READY)
        return _end(old, signal.SIGTERM)


def _end(part: Part, number: signal.Signals) -> float:
    began = time.monotonic()
    code = part.end(number, GRACE)
    if code not in (0, -number):
        raise ChildProcessError(f"{part.name} ended with {code}")
    return time.monotonic() - began


def rolling(
    folder: Path, *, problems: int, n: int = 4, rounds: int = 2, say: Callable[[str], None] = lambda _: None
) -> Rolled:
    """Do it all. `wrong` is empty if nobody noticed; otherwise the folder keeps logs and files."""
    rolled = Rolled()
    with RollingWorld(folder) as world:
        _Run(world, rolled, say).run(problems, n, rounds)
    if not rolled.wrong:
        shutil.rmtree(folder)
    return rolled


class _Run:
    def __init__(self, world: RollingWorld, rolled: Rolled, say: Callable[[str], None]) -> None:
        self._world = world
        self._rolled = rolled
        self._say = say
        self._more: list[int] = []
        """Builds that followed the main one."""

    def run(self, problems: int, n: int, rounds: int) -> None:
        world, rolled = self._world, self._rolled
        first = self._submit("first", FIRST, 1)
        self._until_ended([first])
        version = int(world.query("SELECT id FROM versions WHERE build_id = %s", first)[0][0])
        visitors = Visitors(world.addresses, world.folder)
        main = self._submit("main", problems, n)
        visitors.start(main, version)
        try:
            for _ in range(rounds):
                self._round(main, n)
            self._until_ended([main, *self._more])
        finally:
            visitors.stop()
        rolled.seen = visitors.seen
        rolled.wrong += visitors.wrong
        if not visitors.followed or visitors.followed[-1] != "done":
            rolled.wrong.append(f"who followed the build saw {visitors.followed[-1:]} last")
        self._until_ended(list(visitors.submitted))
        expected = [_expected(first, "first", FIRST, 1), _expected(main, "main", problems, n)]
        expected += [_expected(build, _more(index), MORE, n) for index, build in enumerate(self._more)]
        expected += [_small(build, dataset) for build, dataset in visitors.submitted.items()]
        rolled.samples = sum(len(each.texts) for each in expected)
        rolled.wrong += [line for each in expected for line in wrong(world, each)]
        rolled.wrong += [*store_wrong(world), *world.ended_by_themselves(), *self._doubled(expected)]

    def _submit(self, dataset: str, problems: int, n: int) -> int:
        """By an upload, so that it may be as large as it likes."""
        rows = "".join(f'{{"question": "Q{index}", "answer": "A{index}"}}\n' for index in range(problems))
        upload = ask(self._world, "POST", "/uploads", content=rows.encode()).json()["id"]
        request = {"dataset": dataset, "source": {"upload": upload}, "n": n, "seed": SEED}
        headers = {"idempotency-key": dataset}
        return int(ask(self._world, "POST", "/builds", json=request, headers=headers).json()["id"])

    def _round(self, main: int, n: int) -> None:
        """Whenever something is replaced a build is open: another one follows each that has ended."""
        for name in ORDER:
            running = self._state(main) not in ENDED
            if self._state([main, *self._more][-1]) in ENDED:
                self._more.append(self._submit(_more(len(self._more)), MORE, n))
            try:
                seconds = self._world.replace(name)
            except (subprocess.TimeoutExpired, ChildProcessError) as error:
                self._rolled.wrong.append(str(error))
                continue
            self._rolled.restarts += 1
            self._rolled.during += running
            self._rolled.ends.setdefault(name, []).append(seconds)
            self._say(f"{name} replaced; the old one ended within {seconds:.1f} s")

    def _state(self, build: int) -> str:
        return str(self._world.query("SELECT state::text FROM builds WHERE id = %s", build)[0][0])

    def _until_ended(self, builds: list[int]) -> None:
        until = time.monotonic() + AFTERWARDS
        while open_ := [build for build in builds if self._state(build) not in ENDED]:
            if time.monotonic() > until:
                raise TimeoutError(f"builds {open_} have not ended")
            time.sleep(0.3)

    def _doubled(self, expected: list[Expected]) -> list[str]:
        """A submission that was sent again makes no second build."""
        there = self._world.query("SELECT count(*) FROM builds")[0][0]
        return [] if there == len(expected) else [f"there are {there} builds of {len(expected)}"]


def _expected(build: int, dataset: str, problems: int, n: int) -> Expected:
    keys = [(problem, sample) for problem in range(problems) for sample in range(n)]
    return Expected(build, dataset, {key: said(f"Q{key[0]}", sample_seed(SEED, *key, 0)) for key in keys}, bad_rows=0)


def _more(index: int) -> str:
    return f"more-{index}"


def _small(build: int, dataset: str) -> Expected:
    index: Any = int(dataset.removeprefix("small-"))
    texts = {(0, sample): said(f"S{index}", sample_seed(index, 0, sample, 0)) for sample in range(N)}
    return Expected(build, dataset, texts, bad_rows=0)
