"""`rlt build …` and `rlt data …` against a played service over real HTTP: what is sent, shown and given to scripts."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner, Result

from rlt_client.cli import progress
from rlt_client.cli.app import make_app
from rlt_client.cli.output import console
from rlt_client.schemas.builds import Build

UPLOAD = "00000000-0000-0000-0000-000000000001"
COUNTS = {
    **{"problems": 1000, "samples": 8000, "missing": 3000, "prompt_tokens": 1, "completion_tokens": 2, "bad_rows": 2},
    **{"gen": {"complete": 4400, "truncated": 500, "engine_error": 100}, "duplicates": 3, "shards": {}},
    "score": {"scored": 4300, "score_error": 60},
}
EMPTY = ["scorer", "version", "error", "started_at", "finished_at", "tokens_per_second", "eta_seconds"]
BUILD: dict[str, Any] = {
    **{"id": 7, "dataset": "d", "kind": "generate", "state": "running", "n": 8, "priority": 0, "request": {}},
    **dict.fromkeys(EMPTY),
    **{"created_at": "2026-11-21T00:00:00Z", "counts": COUNTS},
}
VERSION = {
    **{"id": 5, "dataset": "d", "number": 2, "parent": 4, "build": 7, "rows": 990, "selection": {"min_reward": -2.0}},
    **{"scorer": None, "manifest": {"uri": "m", "rows": 990, "bytes": 10, "sha256": "0"}, "files": []},
    **{"counts": {"complete": 4400, "truncated": 0}, "lineage": {}, "created_at": "2026-11-21T00:00:00Z"},
}
REPORT = {
    **{"build": 7, "counts": COUNTS, "flags": {"leak": 12}, "share": 0.5},
    "generation": [{"status": "engine_error", "reason": "timeout", "count": 100, "examples": [[3, 1], [5, 0]]}],
    "scoring": [{"status": "score_error", "reason": "too_long", "count": 60, "examples": [[8, 2]]}],
    "deciles": [
        {"longest": 90, "samples": 10, "truncated": 0, "complete": 10},
        {"longest": 900, "samples": 10, "truncated": 5, "complete": 5},
    ],
    "rewards": {"min": -9.5, "p50": -1.25, "max": -0.5, "mean": -1.5, "best_mean": -1.0},
    "completion_tokens": {"min": 3, "p50": 120, "max": 4096, "mean": 200.5},
}
DRY = {
    **{"problems": 3, "samples": 12, "bad_rows": 1, "duplicates": 2, "rows_read": 6, "whole": False, "shards": 1},
    "bad": [{"id": 1, "at": "2026-11-21T00:00:00Z", "kind": "bad_row", "line": 4, "detail": "answer: missing"}],
    **{"prompts": ["Why?"], "prompt_tokens": 90, "completion_tokens": 900, "gpu_hours": 1.5, "tokens_per_second": 1000},
}
SAMPLE = {
    **{"problem": 3, "sample": 1, "try": 0, "gen_status": "truncated", "gen_reason": None, "finish_reason": "length"},
    **dict.fromkeys(("policy_revision", "prompt_tokens", "reward", "ss_mean", "ss_min", "ss_sum", "kl_mean", "kl_max")),
    **{"completion_tokens": 4096, "score_status": "skipped", "score_reason": None, "format": None, "n_answer": None},
    **{"n_think": None, "flags": ["repetition"], "question": "Why?", "answer": "So", "explanation": None},
    "completion": "red \x1b[31m text",
}


class Jobs:
    """Answers by method and path; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any] | bytes]] = []
        self.builds: list[dict[str, Any]] = [
            BUILD | {"state": "done", "version": 5, "finished_at": BUILD["created_at"]}
        ]

    def answer(self, method: str, path: str) -> tuple[int, bytes, str]:
        where = path.partition("?")[0]
        if where == "/builds/7/stream":
            names = ["progress"] * (len(self.builds) - 1) + ["done"]
            frames = [f"event: {n}\ndata: {json.dumps(b)}\n\n" for n, b in zip(names, self.builds, strict=True)]
            return 200, "".join(frames).encode(), "text/event-stream"
        page = {"next": None}
        found: dict[tuple[str, str], Any] = {
            ("GET", "/builds/7/report"): REPORT,
            ("GET", "/builds/7/samples"): page | {"items": [SAMPLE]},
            ("GET", "/builds/7/events"): page | {"items": DRY["bad"]},
            ("GET", "/builds"): page | {"items": [self.builds[-1]] * 2},
            ("POST", "/builds"): DRY if "dry_run" in path else self.builds[-1],
            ("POST", "/uploads"): {"id": UPLOAD, "bytes": 3, "sha256": "0", "created_at": BUILD["created_at"]},
            ("GET", "/uploads"): page
            | {"items": [{"id": UPLOAD, "name": "p", "bytes": 3, "sha256": "0", "created_at": BUILD["created_at"]}]},
            ("GET", "/versions/5"): VERSION,
            ("GET", "/datasets/d/versions"): page | {"items": [VERSION]},
            ("GET", "/datasets"): page
            | {
                "items": [
                    {"name": "d", "created_at": BUILD["created_at"], "builds": 1, "versions": 2, "latest_version": 5}
                ]
            },
        }
        if method == "DELETE":
            return 204, b"", "text/plain"
        return 200, json.dumps(found.get((method, where), self.builds[-1])).encode(), "application/json"


@contextmanager
def served(jobs: Jobs) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            chunked = self.headers.get("transfer-encoding") == "chunked"
            body = self._chunks() if chunked else self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path != "/livez":
                jobs.asked.append((self.command, self.path, body if chunked or not body else json.loads(body)))
            status, content, kind = jobs.answer(self.command, self.path)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(content)

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 names set by http.server

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture(scope="module")
def app() -> Typer:
    return make_app()


@pytest.fixture
def rlt(app: Typer, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    with served(jobs) as url:

        def run(*arguments: str, stdin: str | None = None) -> Result:
            console.cache_clear()
            env = {"RLT_JOBS_URL": url, "COLUMNS": "140"}
            return CliRunner().invoke(app, arguments, env=env, input=stdin, catch_exceptions=False)

        yield run
    console.cache_clear()


def sent(jobs: Jobs, path: str) -> Any:
    return next(body for method, where, body in jobs.asked if method == "POST" and where == path)


def test_a_source_of_the_service_and_all_choices_are_sent(rlt: Any, jobs: Jobs) -> None:
    options = ("--dataset", "d", "--hub", "a/b", "--split", "test", "--column", "question=prompt", "--limit", "9")
    selection = ("--at-least", "reward=-1", "--at-most", "student_tokens=16000", "--context", "32768")
    others = ("--without-flag", "leak", "--weight", "lambda=3", "--truncated", "retry", "--no-dedup", "--keep-tokens")
    done = rlt("build", "create", *options, *selection, *others, "-n", "8", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["id"] == 7
    request = sent(jobs, "/builds")
    assert request["source"] == {
        "hub": {"name": "a/b", "split": "test"}, "columns": {"question": "prompt"}, "limit": 9,
    }  # fmt: skip
    assert request["selection"] == {
        "mode": "best", "at_least": {"reward": -1.0}, "at_most": {"student_tokens": 16000.0}, "context": 32768,
        "without_flags": ["leak"], "weights": {"lambda": 3.0},
    }  # fmt: skip
    found = (request["n"], request["truncated"], request["deduplicate"], request["keep_tokens"])
    assert found == (8, "retry", False, True)


def test_a_file_is_uploaded_first_and_a_scored_one_has_one_sample(rlt: Any, jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("q,a\n")
    assert rlt("build", "create", "p.csv", "--dataset", "d", "--kind", "score").exit_code == 0
    assert (jobs.asked[0][:2], jobs.asked[0][2]) == (("POST", "/uploads?name=p.csv"), b"q,a\n")
    assert (sent(jobs, "/builds")["source"], sent(jobs, "/builds")["n"]) == ({"upload": UPLOAD, "columns": {}}, 1)


def test_a_dry_run_says_what_would_be_and_leaves_nothing(rlt: Any, jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("{}")
    shown = rlt("build", "create", "p.jsonl", "--dataset", "d", "--dry-run").stdout
    for words in ("12, shards: 1", "line 4: answer: missing", "1.5 GPU-hours at most", "Why?", "the beginning of the"):
        assert words in shown
    assert jobs.asked[-1][:2] == ("DELETE", f"/uploads/{UPLOAD}")
    assert (
        json.loads(rlt("build", "create", "--path", "/d/p.jsonl", "--dataset", "d", "--dry-run", "--json").stdout)
        == DRY
    )


def test_watching_in_a_pipe_tells_lines_and_stalls_loudly(rlt: Any, jobs: Jobs) -> None:
    since = (datetime.now(UTC) - timedelta(seconds=130)).isoformat()
    stalled = BUILD | {"stalled_since": since, "note": "teacher: connection refused"}
    pace = {"tokens_per_second": 12345.0, "eta_seconds": 754.0}
    jobs.builds[:0] = [BUILD | {"state": "importing"}, BUILD | pace, BUILD | pace, stalled]
    done = rlt("build", "watch", "7")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[1] == (
        "build 7 running: 5,000/8,000 62% · 4,400 complete · 500 truncated · 100 engine_error · 4,300 scored · "
        "60 score_error · 12,345 tokens/s · 13 min left"
    )
    assert lines[2].endswith("STALLED for 2 min: teacher: connection refused")
    assert lines[3].startswith("build 7 done")


def test_watching_for_scripts_gives_a_line_a_change_and_its_end_by_the_exit_code(rlt: Any, jobs: Jobs) -> None:
    jobs.builds = [BUILD, BUILD | {"state": "failed", "error": {"type": "shards_dead", "title": "t"}}]
    done = rlt("build", "watch", "7", "--json")
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["running", "failed"]
    assert done.exit_code == 1


def test_the_bar_shows_states_pace_and_a_stall() -> None:
    def drawn(width: int, **changes: Any) -> str:
        bar = progress._Bar()
        bar.show(Build.model_validate(BUILD | changes))
        screen = Console(width=width, file=io.StringIO(), record=True, force_terminal=True)
        screen.print(bar)
        return screen.export_text(styles=True)

    running = drawn(100, tokens_per_second=12345.0, eta_seconds=7 * 3600.0)
    assert "\x1b[32m━━" in running  # green: complete
    assert "\x1b[33m━" in running  # yellow: cut off
    assert "5,000/8,000 62%" in running
    assert "12,345 tokens/s · 7 h 00 min left" in running
    now = datetime.now(UTC) + timedelta(hours=1)  # by the server's clock: no second goes by before it is drawn
    stalled = drawn(100, stalled_since=now, note="teacher down\x1b[2J", tokens_per_second=1.0)
    assert "\x1b[1;37;41m" in stalled
    assert "STALLED for 0 s: teacher down␛[2J" in stalled
    assert "tokens/s" not in stalled
    importing = drawn(60, state="importing", counts=COUNTS | {"samples": 0, "missing": 0, "gen": {}, "score": {}})
    assert "1,000 problems" in importing


def test_the_report_is_read_by_people(rlt: Any) -> None:
    shown = rlt("build", "report", "7").stdout
    for words in (
        "engine_error",
        "timeout",
        "3/1, 5/0",
        "too_long",
        "50.0%",
        "-1.250",
        "12 leak",
        "best_mean",
        "4,096",
    ):
        assert words in shown
    assert json.loads(rlt("build", "report", "7", "--json").stdout)["deciles"] == REPORT["deciles"]


def test_events_name_the_lines_that_were_refused(rlt: Any) -> None:
    assert "bad_row  4     answer: missing" in rlt("build", "events", "7").stdout
    assert json.loads(rlt("build", "events", "7", "--json").stdout)["line"] == 4


def test_samples_are_browsed_with_texts_that_cannot_command_the_terminal(rlt: Any, jobs: Jobs) -> None:
    shown = rlt(
        "build", "samples", "7", "--sort", "length", "-r", "--status", "truncated", "--scoring", "skipped"
    ).stdout
    assert "problem 3, sample 1 · truncated" in shown
    assert "red ␛[31m text" in shown
    assert "no reward: skipped · repetition" in shown
    assert jobs.asked[-1][1] == (
        "/builds/7/samples?sort=length&descending=true&texts=true&limit=5&gen_status=truncated&score_status=skipped"
    )
    assert json.loads(rlt("build", "samples", "7", "--json").stdout)["try"] == 0


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (("retry", "7", "--status", "truncated", "--max-tokens", "9"), "/builds/7/retry",
         {"gen_status": ["truncated"], "score_errors": False, "max_tokens": 9}),
        (("retry", "7", "--score-errors"), "/builds/7/retry",
         {"gen_status": ["engine_error", "cancelled"], "score_errors": True}),
        (("priority", "7", "9"), "/builds/7/priority", {"priority": 9}),
        (("pause", "7"), "/builds/7/pause", b""),
        (("resume", "7"), "/builds/7/resume", b""),
        (("cancel", "7"), "/builds/7/cancel", b""),
    ],
)  # fmt: skip
def test_actions_send_what_they_say(rlt: Any, jobs: Jobs, arguments: tuple[str, ...], path: str, body: Any) -> None:
    done = rlt("build", *arguments)
    assert done.exit_code == 0, done.output
    assert "build 7" in done.stdout
    assert sent(jobs, path) == body


def test_more_is_made_of_what_is_there(rlt: Any, jobs: Jobs) -> None:
    assert rlt("build", "rescore", "7", "--student", "other", "--select", "all").exit_code == 0
    request = sent(jobs, "/builds/7/rescore")
    assert (request["student"], request["selection"]["mode"]) == ("other", "all")
    done = rlt("build", "rerank", "7", "--select", "top_k", "-k", "2", "--watch", "--json")  # of its newest version
    assert done.exit_code == 0
    assert sent(jobs, "/versions/5/rerank")["selection"]["k"] == 2
    assert rlt("build", "rerank", "--version", "5").exit_code == 0


def test_data_sets_versions_and_uploads_are_listed_and_shown(rlt: Any) -> None:
    assert "newest version" in rlt("data", "list").stdout
    assert "990" in rlt("data", "versions", "d").stdout
    shown = rlt("data", "show", "5").stdout
    for words in ("number 2", "build 7, from version 4", '{"min_reward":-2.0}', "4,400 complete"):
        assert words in shown
    assert UPLOAD in rlt("data", "uploads").stdout
    for command in (("list",), ("versions", "d"), ("show", "5"), ("uploads",)):
        json.loads(rlt("data", *command, "--json").stdout)
    lines = rlt("build", "list", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [7, 7]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("build", "delete", "7"), "/builds/7"),
        (("data", "delete", "5"), "/versions/5"),
        (("data", "delete-upload", UPLOAD), f"/uploads/{UPLOAD}"),
    ],
)
def test_nothing_is_deleted_unasked(rlt: Any, jobs: Jobs, arguments: tuple[str, ...], path: str) -> None:
    refused = rlt(*arguments)
    assert (refused.exit_code, jobs.asked) == (2, [])
    assert "say --yes" in refused.stderr
    assert rlt(*arguments, "--yes").exit_code == 0
    assert jobs.asked[-1][:2] == ("DELETE", path)
