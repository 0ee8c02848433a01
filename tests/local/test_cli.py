"""The command `rlt` as people meet it: its start, its errors in a line, its exit codes, foreign plugins."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from rlt_client.cli import app as app_module
from rlt_client.cli import choices
from rlt_client.cli.app import add_plugin, make_app
from rlt_client.schemas import builds, explain, models, reward
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_client.testing import FakePlatform

RLT = Path(sys.executable).with_name("rlt")


@pytest.fixture(scope="module")
def platform():
    fake = FakePlatform(reward=lambda item: -float(len(item.explanation or "")), explain=lambda _, i: "x" * (i + 1))
    with fake.serve() as url:
        yield {"RLT_TEACHER_URL": url, "RLT_REWARD_URL": url, "RLT_JOBS_URL": url}


def test_help_starts_at_once_and_names_every_command() -> None:
    assert min(_timed_help() for _ in range(3)) < 1.0
    names = subprocess.run([RLT, "--help"], capture_output=True, text=True).stdout
    for name in ("explain", "score", "build", "up", "status", "logs", "down", "demo"):
        assert f"│ {name} " in names


def _timed_help() -> float:
    """Processor time, since other programs share the machine with a test."""
    code = f"import resource, subprocess; subprocess.run([{str(RLT)!r}, '--help'], stdout=subprocess.DEVNULL);"
    code += "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_help_imports_no_client_and_nothing_heavy() -> None:
    code = (
        "import sys; from rlt_client.cli.app import make_app; make_app();"
        "print([m for m in ('torch', 'httpx', 'psutil', 'rlt_client.aio', 'rlt_local.plan') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_broken_plugin_costs_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()
    add_plugin(app, EntryPoint("x", "no_such_package:register", app_module.GROUP))
    add_plugin(app, EntryPoint("y", "json:dumps_nothing", app_module.GROUP))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "rlt: warning: the commands of no_such_package:register are left out: No module named 'no_such_package'"
    )
    assert len(lines) == 2


def test_a_plugin_adds_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "entry_points", lambda group: [_Plugin()])
    result = CliRunner().invoke(make_app(), ["greet"])
    assert result.output == "hello\n"


class _Plugin:
    name = value = "greeting"

    def load(self):
        return lambda app: app.command("greet")(lambda: typer.echo("hello"))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("explain", "q", "a"), 3, "no teacher server at http://127.0.0.1:8001"),
        (("score", "-q", "q", "-a", "a", "-e", "e"), 3, "`rlt up` starts a local stack (connection refused)"),
        (("build", "list"), 3, "no jobs server"),
        (("score", "missing.jsonl"), 1, "missing.jsonl: No such file or directory"),
        (("build", "create", "missing.jsonl", "--dataset", "d"), 1, "missing.jsonl: No such file or directory"),
        (("explain", "q", ""), 2, "answer: String should have at least 1 character"),
        (("explain", "q", "a", "--preset", "best"), 2, "'best' is not one of"),
        (("build", "create", "-", "--dataset", "a/b"), 2, "dataset: String should match pattern"),
        (("build", "create", "-", "--dataset", "d", "-k", "2"), 2, "k goes with mode top_k"),
        (("build", "export"), 2, "give a build or --version"),
        (("build", "rerank"), 2, "give a build or --version"),
        (("build", "rerank", "1", "--at-least", "reward"), 2, "--at-least reward: want NAME=VALUE"),
        (("build", "rerank", "1", "--at-most", "beauty=1"), 2, "Input should be 'reward'"),
        (("build", "rerank", "1", "--weight", "lambda=much"), 2, "could not convert string to float"),
        (("build", "create", "--dataset", "d"), 2, "give exactly one of FILE, --path and --hub"),
        (("build", "create", "-", "--hub", "x", "--dataset", "d"), 2, "give exactly one of FILE, --path and --hub"),
        (
            ("build", "create", "-", "--split", "x", "--dataset", "d"),
            2,
            "--config, --split and --revision go with --hub",
        ),
        (("build", "create", "-", "--dataset", "d", "--column", "query=q"), 2, "unknown: query"),
        (("build", "delete", "1"), 2, "delete build 1: say --yes"),
        (("build", "priority", "1", "10"), 2, "Input should be less than or equal to 9"),
        (("data", "delete-upload", "x"), 2, "x is no id of an upload"),
        (("score",), 2, "give a file of JSON lines"),
        (("score", "-q", "q", "-a", "a", "-e", "e", "--map", "log"), 2, "mapping.kind: Input should be 'affine'"),
        (("score", "-q", "q", "-a", "a", "-e", "e", "--map", "exp:1:2:3"), 2, "want KIND, KIND:SCALE or"),
        (("score", "-q", "q", "-a", "a"), 2, "give completion, explanation or teacher.token_ids"),
        (("up", "--ports", "many"), 2, "--ports takes a number or `free`"),
        (("up", "--student", "s"), 2, "--student goes with --teacher"),
        (("up", "--engine", "steam"), 2, "'steam' is neither transformers, vllm nor an address"),
        (("up", "--engine", "vllm", "--ports", "free", "--engine-env", "none"), 1, "no vLLM environment in "),
    ],
)
def test_what_people_can_mend_is_a_line_and_an_exit_code(
    arguments: tuple[str, ...], status: int, words: str, rlt, platform: dict[str, str]
) -> None:
    env = platform if status != 3 else {}
    if status == 3 and _occupied():
        pytest.skip("something listens on the usual ports of this machine")
    done = rlt(*arguments, env=env)
    assert done.returncode == status, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def _occupied() -> bool:
    from rlt_local.ports import taken

    return any(map(taken, (8001, 8002, 8003)))


def test_explain_ranks_and_shows(rlt, platform: dict[str, str]) -> None:
    done = rlt("explain", "q", "a", "-n", "2", env=platform)
    assert done.returncode == 0, done.stderr
    assert "1. best sample 0" in done.stdout
    assert "reward -1.000" in done.stdout
    assert "policy fake-teacher" in done.stdout


def test_explain_gives_the_reply_as_json(rlt, platform: dict[str, str]) -> None:
    done = rlt("explain", "q", "a", "-n", "3", "--no-score", "--json", env=platform)
    reply = json.loads(done.stdout)
    assert [each["text"] for each in reply["explanations"]] == ["x", "xx", "xxx"]
    assert "best" not in reply


def test_score_reads_lines_and_keeps_their_order(rlt, platform: dict[str, str], tmp_path: Path) -> None:
    items = [{"id": str(i), "question": "q", "answer": "a", "explanation": "x" * i} for i in (3, 1, 2)]
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(map(json.dumps, items)) + "\n\n")
    from_file = rlt("score", str(file), "--json", env=platform)
    from_stdin = rlt("score", "-", "--json", env=platform, stdin=file.read_text())
    rewards = [json.loads(line) for line in from_file.stdout.splitlines()]
    assert [(each["id"], each["reward"]) for each in rewards] == [("3", -3.0), ("1", -1.0), ("2", -2.0)]
    assert from_stdin.stdout == from_file.stdout


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (("--preset", "info_gain"), {"preset": "info_gain"}),
        (("--kl", "exact", "--lambda", "2"), {"preset": "rlt", "kl": "exact", "lambda": 2.0}),
        (("--map", "exp"), {"preset": "rlt", "mapping": {"kind": "exp", "scale": 1.0, "offset": 0.0}}),
        (
            ("--preset", "rlpr", "--map", "sigmoid:0.5:-3"),
            {"preset": "rlpr", "mapping": {"kind": "sigmoid", "scale": 0.5, "offset": -3.0}},
        ),
    ],
    ids=str,
)
def test_score_asks_for_the_reward_that_was_named(rlt, options: tuple[str, ...], spec: dict[str, object]) -> None:
    fake = FakePlatform()
    with fake.serve() as url:
        assert rlt("score", "-q", "q", "-a", "a", "-e", "e", *options, "--reward-url", url).returncode == 0
    [request] = [request for request in fake.requests if isinstance(request, reward.RewardRequest)]
    assert isinstance(request.spec, reward.SpecRequest)
    assert request.spec.model_dump(exclude_none=True) == spec


def test_score_exits_1_when_an_item_has_no_reward(rlt) -> None:
    def refuse(item) -> float:
        raise ValueError("too_long")

    with FakePlatform(reward=refuse).serve() as url:
        one = ("score", "-q", "q", "-a", "a", "-e", "e", "--reward-url", url)
        done = rlt(*one)
    assert done.returncode == 1
    assert "no reward: too_long" in done.stdout


def test_score_names_the_line_that_is_wrong(rlt, platform: dict[str, str]) -> None:
    lines = '{"question": "q", "answer": "a", "explanation": "e"}\n{"question": 1}\n'
    done = rlt("score", "-", env=platform, stdin=lines)
    assert done.returncode == 1
    assert "rlt: error: standard input, line 2: question: Input should be a valid string" in done.stderr


def stack_record(folder: Path, url: str, state: str = "ready") -> None:
    folder.mkdir()
    (folder / "local.key").write_text("rlt_secret\n")
    record = {
        "state": state,
        "urls": {"teacher": url, "reward": url, "jobs": url},
        "key_file": str(folder / "local.key"),
    }
    (folder / "stack.json").write_text(json.dumps(record))


def test_the_local_stack_of_this_folder_is_found_with_its_key(rlt, tmp_path: Path) -> None:
    seen: list[str | None] = []
    fake = FakePlatform(refuse=lambda request: seen.append(request.headers.get("authorization")))
    with _with_headers(fake) as url:
        stack_record(tmp_path / ".rlt", url)
        assert rlt("explain", "q", "a").returncode == 0
        assert seen[-1] == "Bearer rlt_secret"
        assert rlt("explain", "q", "a", "--key", "mine").returncode == 0
        assert seen[-1] == "Bearer mine"
        other = url.replace("127.0.0.1", "localhost")  # another name: not known to be the stack, so no key of it
        assert rlt("explain", "q", "a", "--teacher-url", other).returncode == 0
        assert seen[-1] is None


def _with_headers(fake: FakePlatform):
    """The fake over a socket, with the headers of each request kept (its own server drops them)."""
    import threading
    from contextlib import contextmanager
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import httpx

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            url = f"http://fake{self.path}"
            reply = fake.handle(httpx.Request(self.command, url, headers=dict(self.headers), content=body))
            self.send_response(reply.status_code)
            self.end_headers()
            self.wfile.write(reply.content)

        do_GET = do_POST = _answer  # noqa: N815 names set by http.server

        def log_message(self, *_: object) -> None: ...

    @contextmanager
    def serve():
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()

    return serve()


@pytest.mark.parametrize("text", ["", "[]", '{"state": "ready"}', '{"state": "ready", "urls": {"teacher": 3}}'])
def test_a_record_that_is_none_is_not_believed(text: str, tmp_path: Path) -> None:
    from rlt_client.cli.connection import find_service

    (tmp_path / "stack.json").write_text(text)
    assert find_service("teacher", None, None, tmp_path).url == "http://127.0.0.1:8001"


@pytest.mark.parametrize(("url", "state"), [("http://elsewhere.example", "ready"), ("http://127.0.0.1:1", "stopped")])
def test_a_record_of_another_machine_or_of_a_stopped_stack_gets_no_key(url: str, state: str, tmp_path: Path) -> None:
    from rlt_client.cli.connection import Service, find_service

    stack_record(tmp_path / "s", url, state)
    assert find_service("jobs", None, None, tmp_path / "s") == Service("jobs", "http://127.0.0.1:8003", None)


def _of(schema: type[BaseModel], field: str) -> Any:
    return schema.model_fields[field].annotation


def test_the_words_of_options_are_those_of_the_schemas() -> None:
    assert list(choices.PresetName) == list(reward.Preset)
    assert list(choices.DetailName) == list(reward.Detail)
    assert list(choices.KLName) == list(reward.KLEstimator)
    assert list(choices.Kind) == ["generate", "score"] == list(get_args(_of(builds.BuildRequest, "kind")))
    assert list(choices.TruncatedName) == list(builds.Truncated)
    assert list(choices.SourceKind) == list(builds.SourceFormat)
    assert list(choices.Sort) == list(builds.SampleSort)
    assert list(choices.Status) == list(GenStatus)
    assert list(choices.Scoring) == list(ScoreStatus)
    assert list(choices.Select) == list(builds.SelectionMode)
    assert list(choices.As) == list(builds.ExportFormat)
    assert list(choices.Shape) == list(builds.ExportShape)
    assert list(choices.RoleName) == list(models.Role)
    assert list(choices.KeepName) == list(explain.Keep)
    assert list(choices.IncompleteName) == list(explain.Incomplete)
