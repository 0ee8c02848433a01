"""One run: builds are submitted, the schedule is carried out, and what is left is looked at."""

from __future__ import annotations

import json
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from chaos.checks import Expected, store_wrong, wrong
from chaos.schedule import Act, Size, schedule
from chaos.stand_in import said
from chaos.world import World

from rlt_jobs.builds.spec import sample_seed

__all__ = ["Report", "run"]

AFTERWARDS = 600.0  # seconds for all builds to end once everything is well again, on a busy machine
ENDED: Final = ("done", "failed", "cancelled")
BAD_ROW = 50  # each row of the upload with such a number is no problem at all
BUILDS = 2  # that a run submits
OUTAGES: Final = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.INSUFFICIENT_STORAGE)
AWAY: Final = (httpx.TransportError, httpx.HTTPStatusError)


@dataclass
class Report:
    """What a run did and found."""

    seed: int
    samples: int
    seconds: float = 0.0
    strikes: dict[str, int] = field(default_factory=dict)
    landed: int = 0
    """Strikes that came while a build was open."""
    lives: int = 0
    """Processes that were started."""
    wrong: list[str] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "timeline"}


def run(seed: int, size: Size, folder: Path, *, say: Callable[[str], None] = lambda _: None) -> Report:
    """Do it all. `report.wrong` is empty if every promise was kept; otherwise the folder keeps logs and files."""
    report = Report(seed, size.samples)
    began = time.monotonic()
    with World(folder, size.programs) as world:
        chaos = _Chaos(world, seed, size, report, say)
        try:
            chaos.run()
        finally:
            if report.wrong or sys.exc_info()[0] is not None:
                world.disk.keep(folder / "store.kept")
    report.seconds = round(time.monotonic() - began, 1)
    if not report.wrong:
        shutil.rmtree(folder)
    return report


class _Chaos:
    def __init__(self, world: World, seed: int, size: Size, report: Report, say: Callable[[str], None]) -> None:
        self._world = world
        self._seed = seed
        self._size = size
        self._report = report
        self._say = say
        self._began = time.monotonic()
        self._visitor = Visitor(world.api)
        self._builds: dict[str, int] = {}

    def run(self) -> None:
        self._submit_main()
        self._began = time.monotonic()
        submitting = threading.Thread(target=self._submit_more, daemon=True)
        submitting.start()
        try:
            self._strike_all()
            submitting.join(AFTERWARDS)
            self._wait()
        finally:
            self._visitor.stop()
        self._report.wrong += [*dict.fromkeys(self._visitor.wrong), *self._world.ended_by_themselves()]
        self._report.wrong += store_wrong(self._world)
        if len(self._builds) == BUILDS:
            self._report.wrong += [line for one in self._expected() for line in wrong(self._world, one)]
        self._report.lives = sum(part.lives for part in self._world.parts.values())

    def _submit_main(self) -> None:
        size = self._size
        upload = self._visitor.insist("POST", "/uploads", content=_rows(size.problems).encode())["id"]
        self._build("main", {"source": {"upload": upload}, "n": size.n, "seed": self._seed})

    def _submit_more(self) -> None:
        """What a user does while the house burns: send a file, ask for a build, ask again where no answer came."""
        given = "\n".join(json.dumps(_given(index)) for index in range(self._size.given))
        try:
            upload = self._visitor.insist("POST", "/uploads", content=given.encode())["id"]
            self._build("judged", {"kind": "score", "source": {"upload": upload}, "n": 1})
        except Exception as error:  # the thread's own end would be seen by nobody
            self._report.wrong.append(f"the second build could not be submitted: {error!r}")

    def _build(self, name: str, request: dict[str, Any]) -> None:
        headers = {"idempotency-key": name}
        self._follow(
            name, self._visitor.insist("POST", "/builds", json={"dataset": name, **request}, headers=headers)["id"]
        )

    def _follow(self, name: str, build: int) -> None:
        self._builds[name] = build
        self._visitor.follow(build)
        self._note(f"build {build} ({name}) was taken")

    def _strike_all(self) -> None:
        acts = schedule(self._seed, self._size)
        dice = random.Random(self._seed)
        moments = sorted(
            [(act.at, 1, act) for act in acts] + [(act.until, 0, act) for act in acts if act.down],
            key=lambda moment: moment[:2],
        )
        for at, strikes, act in moments:
            time.sleep(max(0.0, self._began + at - time.monotonic()))
            if strikes:
                self._strike(act, dice)
            else:
                self._world.heal(act)

    def _strike(self, act: Act, dice: random.Random) -> None:
        report = self._report
        report.strikes[act.kind] = report.strikes.get(act.kind, 0) + 1
        report.landed += not self._all_ended()
        self._world.strike(act, dice)
        self._note(str(act))

    def _all_ended(self) -> bool:
        return len(self._builds) == BUILDS and all(self._visitor.state(id) in ENDED for id in self._builds.values())

    def _wait(self) -> None:
        until = time.monotonic() + AFTERWARDS
        while not self._all_ended():
            if self._report.wrong:
                return
            if time.monotonic() > until:
                self._report.wrong.append(f"not ended {AFTERWARDS:g} s after the last outage: {self._visitor.seen}")
                return
            time.sleep(0.2)
        self._note("all builds ended")

    def _expected(self) -> list[Expected]:
        size = self._size
        texts = {
            (p, s): said(f"Q{p}", sample_seed(self._seed, p, s, 0)) for p in range(size.problems) for s in range(size.n)
        }
        given = {(p, 0): _given(p)["explanation"] for p in range(size.given)}
        return [
            Expected(self._builds["main"], "main", texts, bad_rows=len(range(0, size.problems, BAD_ROW))),
            Expected(self._builds["judged"], "judged", given, bad_rows=0),
        ]

    def _note(self, what: str) -> None:
        line = f"{time.monotonic() - self._began:6.1f} s  {what}  [{self._made()}]"
        self._report.timeline.append(line)
        self._say(line)

    def _made(self) -> str:
        try:
            (made,) = self._world.query("SELECT count(*) FROM samples")[0]
        except psycopg.OperationalError:
            return "the database is away"
        return f"{made} of {self._size.samples} made"


def _rows(problems: int) -> str:
    """JSON lines, with a broken one before each 50th problem."""
    lines = []
    for index in range(problems):
        if index % BAD_ROW == 0:
            lines.append('{"question": "has no answer"}')
        lines.append(json.dumps({"question": f"Q{index}", "answer": f"A{index}", "source": index}))
    return "\n".join(lines) + "\n"


def _given(index: int) -> dict[str, str]:
    return {"question": f"G{index}", "answer": "A", "explanation": said(f"G{index}", index)}


class Visitor:
    """Someone who looks at builds all the time, and to whom the API may only say what is true, or that it is away."""

    def __init__(self, api: str) -> None:
        self.wrong: list[str] = []
        self.seen: dict[int, dict[str, Any]] = {}
        self._api = api
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(30)

    def follow(self, build: int) -> None:
        self.seen.setdefault(build, {"state": "importing", "made": 0})

    def state(self, build: int) -> str:
        return str(self.seen[build]["state"])

    def insist(self, method: str, path: str, **options: Any) -> Any:
        """Ask until there is an answer. Raises `HTTPStatusError` for one that another try will not change."""
        until = time.monotonic() + AFTERWARDS
        while True:
            try:
                with httpx.Client(base_url=self._api, timeout=20) as http:
                    reply = http.request(method, path, **options)
                    self._judge(reply, f"{method} {path}")
                    if reply.status_code not in OUTAGES:
                        return reply.raise_for_status().json()
            except httpx.TransportError:
                pass
            if time.monotonic() > until:
                raise TimeoutError(f"{method} {path} had no answer for {AFTERWARDS:g} s")
            time.sleep(0.2)

    def _look(self) -> None:
        while not self._stopped.wait(0.3):
            for build in list(self.seen):
                try:
                    with httpx.Client(base_url=self._api, timeout=20) as http:
                        reply = http.get(f"/builds/{build}")
                        self._judge(reply, f"GET /builds/{build}")
                        self._compare(build, reply.raise_for_status().json())
                except AWAY:
                    continue

    def _judge(self, reply: httpx.Response, what: str) -> None:
        """An outage is 503, a full disk 507; anything else that is no success is a fault of ours."""
        if reply.is_error and reply.status_code not in OUTAGES:
            self.wrong.append(f"{what} was answered with {reply.status_code}: {reply.text[:300]}")

    def _compare(self, build: int, found: dict[str, Any]) -> None:
        """What was made once stays made."""
        before, counts = self.seen[build], found["counts"]
        made = counts["samples"] - counts["missing"]
        if made < before["made"] or made > counts["samples"]:
            self.wrong.append(f"build {build} had {before['made']} samples, then {made} of {counts['samples']}")
        if before["state"] in ENDED and found["state"] != before["state"]:
            self.wrong.append(f"build {build} was {before['state']}, then {found['state']}")
        self.seen[build] = {"state": found["state"], "made": made, "note": found.get("note"), "error": found["error"]}
