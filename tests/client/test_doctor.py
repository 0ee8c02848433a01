"""`rlt doctor`: a healthy stack has nothing to say, and each fault by itself has its own sentence and remedy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlt_client.cli.app import make_app
from rlt_client.doctor import Level, judge, look
from rlt_client.formats import shipped_formats
from rlt_client.schemas.explain import ExplainRequest
from rlt_client.testing import FakePlatform

NAMES = {"teacher": "rlt-teacher-server", "reward": "rlt-reward-server", "jobs": "rlt-jobs"}
VERSION = "0.1.0"
SOURCE = Path(sys.modules["rlt_client.doctor"].__file__ or "").parent
FORMAT = shipped_formats()["stratos"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Stack:
    """Three servers as replies by path; a test spoils what it is about. Formats, replies and errors are the real ones.

    A reply is what is sent as JSON, or (status, JSON); an exception is raised; `hours` is what each clock is off by.
    """

    def __init__(self) -> None:
        teacher = {"name": "base", "revision": "sha256:1"}
        model = {**teacher, "max_tokens": 9, "vocab_size": 9, "dtype": "float32", "device": "cpu"}
        format = {**FORMAT.ref.model_dump(), "available": True}
        policy = {**teacher, "kind": "full", "active": True, "state": "serving"}
        engine = {"name": "engine-1", "up": True, "samples": 0}
        queue = {"messages": 0, "rung_seconds": 10.0, "answered_seconds": 10.0}
        self.hours = dict.fromkeys(NAMES, 0.0)
        self.replies: dict[str, dict[str, Any]] = {
            name: {"/version": {"name": NAMES[name], "version": VERSION}, "/readyz": {"checks": {}}} for name in NAMES
        }
        self.replies["teacher"]["/policies"] = {
            "active": policy,
            "policies": [policy],
            "history": [],
            "engines": [engine, {**engine, "name": "engine-2"}],
        }
        self.replies["teacher"]["/explain"] = self._explained()
        self.replies["reward"]["/models"] = {"student": model, "teacher": {**model, **teacher}}
        self.replies["reward"]["/formats"] = {"default": FORMAT.name, "formats": [format]}
        self.replies["jobs"]["/builds"] = {"items": []}
        self.replies["jobs"]["/health/details"] = {
            "version": VERSION,
            "now": NOW.isoformat(),
            "canary_seconds": 60,
            "database": {"ok": True, "version": "17.2", "revision": "0003", "newest": "0003", "now": NOW.isoformat()},
            "broker": {"ok": True, "version": "7.4", "maxmemory_policy": "noeviction"},
            "store": {"ok": True, "detail": "/store", "free_bytes": 500 * 2**30, "total_bytes": 1000 * 2**30},
            "queues": [{"name": name, **queue} for name in ("shards", "imports", "exports")],
            "outbox": {"waiting": 0, "oldest_seconds": 0},
            "shards": {"ready": 0, "running": 0, "overdue": 0},
            "troubled": [],
        }

    @staticmethod
    def _explained() -> dict[str, Any]:
        request = ExplainRequest(question="q", answer="a", n=1, score=True, return_tokens=True)
        reply: dict[str, Any] = FakePlatform().explain(request).model_dump(mode="json")
        return reply

    @property
    def details(self) -> Any:
        return self.replies["jobs"]["/health/details"]

    @property
    def explanation(self) -> Any:
        return self.replies["teacher"]["/explain"]["explanations"][0]

    def unscored(self, type: str, detail: str) -> None:
        problem = {"type": type, "title": "Not scored", "detail": detail}
        self.explanation["score"] |= {"status": "score_error", "reward": None, "error": problem}

    def answer(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        reply = self.replies[name].get(request.url.path, (404, problem(404, "not_found")))
        if isinstance(reply, Exception):
            raise reply
        status, body = reply if isinstance(reply, tuple) else (200, reply)
        date = formatdate(time.time() + self.hours[name] * 3600, usegmt=True)
        return httpx.Response(status, json=body, headers={"date": date})

    async def findings(self, *, explain: bool = True) -> dict[str, Any]:
        servers = {name: (f"http://{name}", "rlt_key") for name in NAMES}
        facts = await look(servers, explain=explain, transport=httpx.MockTransport(self.answer))
        return {finding.says: finding for finding in judge(facts)}


def problem(status: int, type: str, detail: str = "because") -> dict[str, Any]:
    return {"type": type, "title": type, "status": status, "detail": detail}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlt_client.doctor.looking.AGAIN_S", 0.0)
    monkeypatch.setattr("rlt_client.doctor.looking.version", lambda _: VERSION)


async def test_a_healthy_stack_has_nothing_to_say() -> None:
    found = await Stack().findings()
    assert {finding.level for finding in found.values()} == {Level.ok}
    assert {finding.about for finding in found.values()} == {"teacher", "reward", "jobs", "stack"}
    assert len(found) >= 12


Spoil = Callable[[Stack], Any]


def merge(path: str, server: str, **changes: Any) -> Spoil:
    return lambda stack: stack.replies[server][path].update(changes)


def put(path: str, server: str, reply: Any) -> Spoil:
    return lambda stack: stack.replies[server].__setitem__(path, reply)


def health(part: str, **changes: Any) -> Spoil:
    return lambda stack: stack.details[part].update(changes)


def queue(name: str, **changes: Any) -> Spoil:
    return lambda stack: next(each for each in stack.details["queues"] if each["name"] == name).update(changes)


def shards(ready: int, running: int = 0, overdue: int = 0) -> Spoil:
    return health("shards", ready=ready, running=running, overdue=overdue)


def build(**changes: Any) -> Spoil:
    row = {"id": 7, "owner": "ann", "dataset": "set", **changes}
    return lambda stack: stack.details["troubled"].append(row)


def unscored(type: str, detail: str) -> Spoil:
    return lambda stack: stack.unscored(type, detail)


REFUSED = httpx.ConnectError("All connection attempts failed")
NOT_READY = (503, {"checks": {"engine": {"ok": False, "detail": "no token"}, "policy": {"ok": True}}})
OLD = {
    "ok": False,
    "revision": "0001",
    "detail": "schema 0001 is older than this program's 0003: run `rlt-jobs migrate`",
}
HOSTED = {"name": "other", "revision": "sha256:2", "max_tokens": 9, "vocab_size": 9, "dtype": "x", "device": "cpu"}

FAULTS: list[tuple[str, Spoil, str, str]] = [
    # level, what is wrong, what is said of it, what is to be done
    (
        "wrong",
        put("/version", "teacher", REFUSED),
        "teacher server is not reached.*connection refused",
        "RLT_TEACHER_URL",
    ),
    (
        "wrong",
        put("/version", "reward", httpx.ReadTimeout("")),
        "reward server is not reached.*in time",
        "--reward-url",
    ),
    ("wrong", put("/version", "jobs", (404, "a page")), "something else answers there: HTTP 404", "RLT_JOBS_URL"),
    ("wrong", merge("/version", "reward", name="rlt-jobs"), "is rlt-jobs, not rlt-reward-server", "RLT_REWARD_URL"),
    ("warning", merge("/version", "jobs", version="0.2.0"), "versions differ: this client 0.1.0, jobs 0.2.0", "update"),
    ("wrong", put("/readyz", "teacher", NOT_READY), "not ready: engine: no token", "engine's log"),
    ("wrong", put("/readyz", "reward", (500, "oops")), "not ready: ready: HTTP 500", "reward's log"),
    ("warning", lambda stack: stack.hours.update(jobs=1.0), "clock is 3[56][0-9]{2} s ahead of", "NTP"),
    ("warning", lambda stack: stack.hours.update(teacher=-1.0), "clock is 3[56][0-9]{2} s behind", "NTP"),
    (
        "wrong",
        put("/policies", "teacher", (401, problem(401, "unknown_key"))),
        "key is not one of.*explain",
        "keys create",
    ),
    ("wrong", put("/builds", "jobs", (403, problem(403, "missing_scope"))), "lacks the scope build", "--scope build"),
    (
        "warning",
        put("/health/details", "jobs", (403, problem(403, "missing_scope"))),
        "lacks the scope admin",
        "RLT_KEY",
    ),
    (
        "warning",
        lambda stack: stack.replies["teacher"]["/policies"]["engines"][1].update(up=False, detail="refused"),
        "engine engine-2 is down: refused",
        "by itself",
    ),
    (
        "warning",
        lambda stack: stack.replies["teacher"]["/policies"]["policies"][0].update(detail="no room"),
        "policy base is not in the engines: no room",
        "rlt policies list",
    ),
    (
        "warning",
        merge("/models", "reward", teacher=HOSTED),
        "own teacher .other.* is not the policy",
        "rlt models load",
    ),
    (
        "wrong",
        put("/explain", "teacher", (422, problem(422, "scoring_not_configured"))),
        "knows no reward server",
        "RLT_TEACHER_REWARD_URL",
    ),
    ("warning", put("/explain", "teacher", (429, problem(429, "overloaded"))), "too busy to try", "later"),
    ("wrong", put("/explain", "teacher", (503, problem(503, "unavailable"))), "explanation cannot be made", "logs"),
    (
        "wrong",
        lambda stack: stack.explanation.update(completion=None, error=problem(500, "engine_error")),
        "makes no explanation: engine_error: because",
        "engine's log",
    ),
    ("wrong", lambda stack: stack.explanation.update(teacher=None), "gives no log-probs", "vLLM"),
    ("wrong", lambda stack: stack.explanation.update(score=None), "was not scored", "RLT_TEACHER_REWARD_URL"),
    ("wrong", unscored("scorer_unavailable", "TransportError"), "does not get scores", "reachable from where"),
    ("wrong", unscored("scorer_unavailable", "unknown_key: no such key"), "refuses the teacher's key", "REWARD_KEY"),
    ("wrong", unscored("teacher_logprobs_unusable", "ids differ"), "their tokenizers differ.*ids differ", "student"),
    ("wrong", unscored("kl_unavailable", "none"), "got no log-probs", "RLT_REWARD_TEACHER"),
    ("wrong", unscored("format_mismatch", "a is not b"), "different prompt formats of one name", "RLT_REWARD_FORMATS"),
    ("wrong", unscored("scorer_failed", "shape"), "cannot be scored .scorer_failed: shape", "reward's log"),
    ("wrong", merge("/formats", "reward", formats=[]), "does not know the teacher's prompt format stratos", "FORMATS"),
    (
        "warning",
        merge("/formats", "reward", default="plain"),
        "defaults differ: teacher stratos.*plain",
        "RLT_TEACHER_FORMAT",
    ),
    (
        "wrong",
        lambda stack: stack.replies["reward"]["/formats"]["formats"][0].update(hash="sha256:x"),
        "different prompt formats of one name: stratos",
        "RLT_TEACHER_FORMATS",
    ),
    (
        "wrong",
        lambda stack: stack.replies["reward"]["/formats"]["formats"][0].update(available=False, reason="drops it"),
        "cannot take the prompt format stratos: drops it",
        "another",
    ),
    ("wrong", health("database", **OLD), "schema 0001 is older", "rlt-jobs migrate"),
    ("warning", health("database", revision="0009"), "has schema 0009, newer", "update"),
    ("wrong", health("database", version="13.9"), "Postgres 13.9 is too old", "15"),
    (
        "wrong",
        health("database", ok=False, version=None, now=None, detail="not available"),
        "the database: not available",
        "RLT_JOBS_DATABASE_URL",
    ),
    ("warning", health("database", now=(NOW + timedelta(hours=1)).isoformat()), "database's clock is 3600 s", "NTP"),
    ("wrong", health("broker", ok=False, detail="refused"), "Redis is not reached: refused", "RLT_JOBS_REDIS_URL"),
    ("wrong", health("broker", maxmemory_policy="allkeys-lru"), "may throw messages away.*allkeys-lru", "noeviction"),
    ("wrong", health("store", ok=False, detail="read-only"), "store cannot be written: read-only", "RLT_JOBS_STORE"),
    ("wrong", health("store", free_bytes=2**29), "nearly full: 0.5 GiB of 1000.0", "rlt-jobs sweep"),
    ("warning", health("store", free_bytes=50 * 2**30), "fills up: 50.0 GiB", "larger disk"),
    ("wrong", queue("imports", rung_seconds=200.0), "no relay is at work", "rlt-jobs relay"),
    ("wrong", queue("imports", rung_seconds=None, answered_seconds=None), "no relay is at work", "rlt-jobs relay"),
    (
        "wrong",
        health("outbox", waiting=5, oldest_seconds=40),
        "no relay.*5 messages wait, the oldest for 40 s",
        "relay",
    ),
    ("warning", shards(ready=0, running=2, overdue=2), "2 shards have a lease that ran out", "relay"),
    ("wrong", queue("exports", answered_seconds=None), "no worker takes messages from: exports", "rlt-jobs worker"),
    ("wrong", queue("shards", answered_seconds=200.0), "no worker takes messages from: shards", "rlt-jobs worker"),
    ("wrong", shards(ready=3), "3 shards are ready and nobody works", "workers' log"),
    (
        "wrong",
        build(stalled="down", stalled_seconds=90),
        "build 7 .set, of ann. cannot go on since 90 s: down",
        "itself",
    ),
    (
        "wrong",
        build(dead_shards=2, last_error="boom"),
        "build 7.* 2 shards that were given up: boom",
        "rlt build retry 7",
    ),
]


@pytest.mark.parametrize(("level", "spoil", "says", "todo"), FAULTS, ids=[fault[2] for fault in FAULTS])
async def test_each_fault_by_itself_is_told(level: str, spoil: Spoil, says: str, todo: str) -> None:
    stack = Stack()
    spoil(stack)
    (finding,) = [each for each in (await stack.findings()).values() if each.level != Level.ok]
    assert re.search(says, finding.says), finding.says
    assert (finding.level, todo in (finding.todo or "")) == (level, True), finding


async def test_a_busy_worker_needs_no_proof() -> None:
    """All places are taken by long shards, so that no message is read for minutes."""
    stack = Stack()
    shards(ready=9, running=4)(stack)
    for name in ("shards", "imports", "exports"):
        queue(name, answered_seconds=900.0)(stack)
    assert {each.level for each in (await stack.findings()).values()} == {Level.ok}


async def test_all_engines_down_is_worse_than_one() -> None:
    stack = Stack()
    for engine in stack.replies["teacher"]["/policies"]["engines"]:
        engine |= {"up": False, "detail": "gone"}
    found = await stack.findings()
    assert {each.level for each in found.values() if "engine-" in each.says} == {Level.wrong}


async def test_what_is_about_to_be_taken_is_not_idle() -> None:
    """A build that was just submitted has ready shards for a moment."""
    stack = Stack()
    shards(ready=3)(stack)
    looks: list[int] = []
    answer = stack.answer

    def taken_meanwhile(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health/details":
            looks.append(1)
            shards(ready=3, running=len(looks) - 1)(stack)
        return answer(request)

    stack.answer = taken_meanwhile  # type: ignore[method-assign]  # for this one object
    assert {each.level for each in (await stack.findings()).values()} == {Level.ok}
    assert len(looks) == 2


async def test_nothing_of_the_models_is_used_if_that_is_not_wanted() -> None:
    stack = Stack()
    stack.replies["teacher"]["/explain"] = AssertionError("not asked for")
    found = await stack.findings(explain=False)
    assert not any("explain" in each.says and each.about == "stack" for each in found.values())


async def test_a_tokenizer_of_few_words_gets_the_words_of_a_format() -> None:
    stack = Stack()
    asked: list[str] = []
    answer = stack.answer

    def few_words(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/explain":
            asked.append(json.loads(request.content)["question"])
            if asked[-1] != FORMAT.probe.question:
                return httpx.Response(422, json=problem(422, "untokenizable"))
        return answer(request)

    stack.answer = few_words  # type: ignore[method-assign]  # for this one object
    assert {each.level for each in (await stack.findings()).values()} == {Level.ok}
    assert len(asked) == 2  # the reward server's default format is tried first


async def test_a_score_is_not_waited_for_where_the_reward_server_is_away() -> None:
    stack = Stack()
    stack.replies["reward"]["/version"] = REFUSED
    stack.explanation["score"] = None
    found = [each for each in (await stack.findings()).values() if each.level != Level.ok]
    assert [each.about for each in found] == ["reward"]


async def test_a_stack_that_is_away_altogether() -> None:
    stack = Stack()
    for name in NAMES:
        stack.replies[name]["/version"] = REFUSED
    found = await stack.findings()
    assert [each.level for each in found.values()] == [Level.wrong] * 3


def variables() -> Iterator[str]:
    text = "\n".join(path.read_text() for path in SOURCE.glob("*.py"))
    yield from sorted(set(re.findall(r"RLT_(?:TEACHER|REWARD|JOBS)_[A-Z_]+[A-Z]", text)))


@pytest.mark.parametrize("variable", list(variables()))
def test_the_settings_that_are_named_are_there(variable: str) -> None:
    from rlt_jobs.settings import Settings as Jobs
    from rlt_reward_server.settings import Settings as Reward
    from rlt_teacher_server.settings import Settings as Teacher

    _, server, field = variable.split("_", 2)
    settings = {"TEACHER": Teacher, "REWARD": Reward, "JOBS": Jobs}[server]
    assert field == "URL" or field.lower() in settings.model_fields


def test_the_commands_that_are_named_are_there() -> None:
    import typer

    group: Any = typer.main.get_command(make_app())
    text = "\n".join(path.read_text() for path in SOURCE.glob("*.py"))
    named = set(re.findall(r"`rlt ((?:[a-z]+ ?)+)", text))
    assert len(named) >= 4
    for words in named:
        first, *rest = words.split()
        command = group.commands[first]
        if hasattr(command, "commands"):
            assert rest[0] in command.commands, words
    usage = subprocess.run([sys.executable, "-m", "rlt_jobs"], capture_output=True, text=True).stderr
    assert set(re.findall(r"`rlt-jobs ([a-z]+)", text)) <= set(re.findall(r"^  ([a-z]+)", usage, re.M))


def test_the_command_tells_and_its_exit_code_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    stack = Stack()
    transport = httpx.MockTransport(stack.answer)
    monkeypatch.setattr(
        "rlt_client.doctor.look", lambda servers, explain: look(servers, explain=explain, transport=transport)
    )
    for name in NAMES:
        monkeypatch.setenv(f"RLT_{name.upper()}_URL", f"http://{name}")
    monkeypatch.setenv("COLUMNS", "160")
    runner = CliRunner()
    well = runner.invoke(make_app(), ["doctor", "--json"])
    assert (well.exit_code, json.loads(well.stdout)["ok"]) == (0, True)
    health("broker", maxmemory_policy="allkeys-lru")(stack)
    ill = runner.invoke(make_app(), ["doctor", "--json"])
    assert (ill.exit_code, json.loads(ill.stdout)["ok"]) == (1, False)
    (finding,) = [each for each in json.loads(ill.stdout)["findings"] if each["level"] == "wrong"]
    assert finding.keys() == {"level", "about", "says", "todo"}
