"""Question and answer → explanation → reward → data set, through the real programs of one stack; then failures.

The tests run in this order, the last one taking the stack down.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from observability.exposed import JOBS, series
from plugins.traces import Collector, SeenSpan
from prometheus_client.parser import text_string_to_metric_families

from rlt_client import (
    BuildProblem,
    BuildRequest,
    Detail,
    ExplainRequest,
    JobsClient,
    RewardClient,
    RewardItem,
    TeacherClient,
)
from rlt_client.errors import Forbidden, NotFound, Unauthorized
from rlt_client.schemas.builds import BuildState, SampleSort, Selection, SelectionMode
from rlt_local.state import ComponentState, StateFolder

RLT = Path(sys.executable).with_name("rlt")


def test_everything_is_up(stack) -> None:
    status = json.loads(stack.rlt("status", "--json"))
    assert status["state"] == "ready"
    assert {each["state"] for each in status["components"].values()} == {"ready", "done"}
    assert "migrate" in stack.rlt("status")
    assert "database" in stack.rlt("logs", "postgres", "-n", "50")


def test_an_explanation_is_worth_what_the_reward_server_says(
    teacher: TeacherClient, reward: RewardClient, first: dict[str, str]
) -> None:
    """Scored inside /explain with the teacher's own log-probs, by /reward with them, and by /reward's own teacher."""
    problem = {"question": first["question"], "answer": first["answer"]}
    reply = teacher.explain(ExplainRequest(**problem, n=4, score=True, return_tokens=True, seed=1))
    rewards = [each.score.value() for each in reply.explanations if each.score]
    assert rewards == sorted(rewards, reverse=True)
    assert len(rewards) == 4
    for each in reply.explanations:
        sent = reward.score(RewardItem(**problem, completion=each.completion, teacher=each.teacher))
        hosted = reward.score(RewardItem(**problem, completion=each.completion))
        assert sent.value() == pytest.approx(each.score.value(), abs=1e-4)
        assert hosted.value() == pytest.approx(each.score.value(), abs=1e-3)


def test_a_good_trace_outranks_one_that_leaks(reward: RewardClient, problems: Path) -> None:
    for row in map(json.loads, problems.read_text().splitlines()[:5]):
        problem = {"question": row["question"], "answer": row["answer"]}
        good, leak = (reward.score(RewardItem(**problem, explanation=row[name])).value() for name in ("good", "leak"))
        assert good > leak


def test_the_commands_find_the_stack_by_its_folder(stack, first: dict[str, str]) -> None:
    reply = json.loads(stack.rlt("explain", first["question"], first["answer"], "-n", "2", "--json"))
    assert len(reply["explanations"]) == 2
    assert reply["explanations"][0]["score"]["kl_source"] == "sent"
    shown = stack.rlt("score", "-q", first["question"], "-a", first["answer"], "-e", first["leak"])
    assert "reward -" in shown
    assert "KL, nats" in shown
    item = {"question": first["question"], "answer": first["answer"], "explanation": first["good"]}
    scored = json.loads(stack.rlt("score", "-", "--json", "--detail", "tokens", stdin=json.dumps(item)))
    assert scored["token_scores"]["think"]["texts"] == first["good"].split()
    assert scored["token_scores"]["answer"]["texts"] == [first["answer"]]


def test_a_data_set_is_built_and_exported(stack, problems: Path) -> None:
    watched = stack.rlt("build", "create", str(problems), "--dataset", "chains", "-n", "2", "--watch")
    assert "done" in watched
    build = json.loads(stack.rlt("build", "list", "--json").splitlines()[0])
    assert (build["dataset"], build["state"], build["counts"]["missing"]) == ("chains", "done", 0)
    assert build["counts"]["samples"] == 120
    assert "chains" in stack.rlt("build", "show", str(build["id"]))

    number = str(build["id"])
    stack.rlt("build", "export", number, "-o", "chains.jsonl")
    lines = [json.loads(line) for line in (stack.work / "chains.jsonl").read_text().splitlines()]
    roles = {tuple(message["role"] for message in line["messages"]) for line in lines}
    assert roles == {("user", "assistant")}
    stack.rlt("build", "export", number, "--as", "parquet", "--shape", "raw", "-o", "chains.parquet")
    assert (stack.work / "chains.parquet").read_bytes()[:4] == b"PAR1"
    stack.rlt("build", "export", number, "--as", "hf", "-o", "folder")
    assert "is there already and not empty" in stack.rlt(
        "build", "export", number, "--as", "hf", "-o", "folder", status=1
    )
    _loads_as_a_hugging_face_folder(stack.work / "folder", len(lines))


def test_a_build_is_one_trace_from_its_submission_to_a_score(stack, jobs: JobsClient, collector: Collector) -> None:
    """Through the API, the worker's processes, the teacher and the reward server, which know of each other by HTTP."""
    build = next(build for build in jobs.builds() if build.dataset == "chains")
    wanted = {("rlt-jobs", "POST /builds")} | {("rlt-jobs worker", name) for name in ("import", "shard", "publish")}
    wanted |= {("rlt-teacher-server", "POST /explain"), ("rlt-reward-server", "POST /reward")}

    def found(spans: list[SeenSpan]) -> list[SeenSpan]:
        of_build = {span.trace for span in spans if span.attributes.get("rlt.build_id") == build.id}
        traces = [[span for span in spans if span.trace == trace] for trace in of_build]
        return next((trace for trace in traces if wanted <= {(span.service, span.name) for span in trace}), [])

    spans = {span.id: span for span in collector.wait(found)}
    (root,) = (span for span in spans.values() if not span.parent)
    assert (root.service, root.name) == ("rlt-jobs", "POST /builds")
    for name in ("import", "shard", "publish"):
        assert {spans[span.parent] for span in spans.values() if span.name == name} == {root}
    for name in ("POST /explain", "POST /reward"):
        chain = [each.name for each in _ancestors(spans, next(s for s in spans.values() if s.name == name))]
        assert chain == ["POST", "sample", "shard", "POST /builds"]
    tokens = [path.read_text().strip() for path in stack.folder.key_file.parent.glob("*.key")]
    assert tokens
    assert not [span.name for span in collector.spans if any(token in span.text for token in tokens)]


def test_what_is_watched_is_what_running_programs_give_out(stack, metrics_ports: dict[str, int]) -> None:
    """Dashboards and alerts are held to the programs' registries; here these are held to the programs at work."""
    urls = {"rlt-teacher": stack.url("teacher"), "rlt-reward": stack.url("reward"), "rlt-jobs-api": stack.url("jobs")}
    urls |= {f"rlt-jobs-{name}": f"http://127.0.0.1:{port}" for name, port in metrics_ports.items()}
    moved: set[str] = set()
    for job in JOBS:
        text = httpx.get(f"{urls[job]}/metrics").text
        found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        known = series(job)
        for sample in found:
            if sample.name.startswith("rlt_") and not sample.name.endswith("_created"):
                assert sample.labels.keys() == known[sample.name], sample
        moved |= {sample.name for sample in found if sample.value > 0}
    assert moved >= {
        "rlt_http_requests_total",
        "rlt_teacher_samples_total",
        "rlt_teacher_engine_up",
        "rlt_reward_items_total",
        "rlt_reward_tokens_total",
        "rlt_jobs_leases_total",
        "rlt_jobs_flushed_samples_total",
        "rlt_jobs_relayed_messages_total",
        "rlt_jobs_builds_ended",
        "rlt_jobs_store_bytes",
    }


def test_the_doctor_finds_nothing_wrong(stack) -> None:
    told = json.loads(stack.rlt("doctor", "--json"))
    assert told["ok"], told
    ill = [each["says"] for each in told["findings"] if each["level"] != "ok"]
    assert all("disk fills up" in says for says in ill)  # this machine's own


def _ancestors(spans: dict[str, SeenSpan], span: SeenSpan) -> Iterator[SeenSpan]:
    while span.parent in spans:
        span = spans[span.parent]
        yield span


def _loads_as_a_hugging_face_folder(folder: Path, rows: int) -> None:
    import datasets

    loaded = datasets.load_dataset(str(folder), cache_dir=str(folder.with_name("cache")))
    assert loaded["train"].num_rows == rows
    assert loaded["train"].column_names == ["messages"]


def test_a_build_can_be_paused_and_cancelled(stack, jobs: JobsClient, problems: Path) -> None:
    rows = [BuildProblem(**json.loads(line)["only"]) for line in _only(problems)]
    build = jobs.create_build(BuildRequest(dataset="paused", problems=rows, n=512))  # more than it can make meanwhile
    assert "paused" in stack.rlt("build", "pause", str(build.id))
    assert jobs.build(build.id).state is BuildState.paused
    stack.rlt("build", "resume", str(build.id))
    assert "cancelled" in stack.rlt("build", "cancel", str(build.id))
    assert "cancelled" in stack.rlt("build", "watch", str(build.id), status=1)
    assert "has no version yet: it is cancelled" in stack.rlt("build", "export", str(build.id), status=1)


def _only(problems: Path) -> list[str]:
    """Problems without the columns that a build does not know."""
    rows = map(json.loads, problems.read_text().splitlines())
    return [json.dumps({"only": {"question": row["question"], "answer": row["answer"]}}) for row in rows]


def test_a_killed_worker_costs_nothing(stack, jobs: JobsClient, problems: Path, until) -> None:
    """Exactly n samples of each problem, although the worker and all its processes are killed half-way."""
    rows = [BuildProblem(**json.loads(line)["only"]) for line in _only(problems)]
    request = BuildRequest(dataset="killed", problems=rows, n=8, selection=Selection(mode=SelectionMode.all))
    build = jobs.create_build(request)
    until(lambda: 0 < jobs.build(build.id).counts.missing < 480, why=stack.logs)
    restarts = stack.record.components["worker"].restarts
    os.killpg(stack.pid("worker"), signal.SIGKILL)
    *_, ended = jobs.watch(build.id, every=0.2)
    assert ended.state is BuildState.done
    assert stack.record.components["worker"].restarts == restarts + 1
    made = Counter((row.problem, row.sample) for row in jobs.samples(build.id, page=500))
    assert set(made) == {(problem, sample) for problem in range(60) for sample in range(8)}
    assert set(made.values()) == {1}
    best = next(iter(jobs.samples(build.id, sort=SampleSort.by_reward, descending=True, texts=True, page=1)))
    assert best.explanation


def test_a_database_that_is_away_is_told_and_found_again(stack, jobs: JobsClient, until) -> None:
    data, away = stack.folder.root / "postgres", stack.folder.root / "away"
    health = f"{stack.url('jobs')}/readyz"
    data.rename(away)  # so that the supervisor cannot start it again yet
    try:
        os.kill(stack.pid("postgres"), signal.SIGQUIT)
        until(lambda: httpx.get(health).status_code == 503)
        reply = httpx.get(f"{stack.url('jobs')}/builds", headers={"authorization": f"Bearer {stack.key}"})
        assert reply.status_code == 503
        assert reply.json()["type"] == "database_unavailable"
        assert "retry-after" in reply.headers
        assert json.loads(stack.rlt("status", "--json", status=1).partition("\nrlt:")[0])["state"] == "ready"
    finally:
        away.rename(data)
    until(lambda: httpx.get(health).status_code == 200, why=stack.logs)
    assert next(iter(jobs.builds())).id  # the clients retry through it


def test_keys_open_no_more_than_they_should(stack, first: dict[str, str]) -> None:
    with JobsClient(stack.url("jobs")) as nobody, pytest.raises(Unauthorized):
        nobody.build(1)
    narrow = stack.folder.key_file.with_name("teacher.key").read_text().strip()  # scope reward, on the reward server
    with RewardClient(stack.url("reward"), key=narrow) as scorer:
        item = RewardItem(question=first["question"], answer=first["answer"], explanation=first["good"])
        assert scorer.score(item, detail=Detail.none).value() < 1
    with TeacherClient(stack.url("teacher"), key=narrow) as teacher, pytest.raises((Unauthorized, Forbidden)):
        teacher.explain(ExplainRequest(question="q", answer="a"))
    with JobsClient(stack.url("jobs"), key=stack.key) as mine, pytest.raises(NotFound):
        mine.build(10**6)


def test_wrong_requests_are_told_in_a_line(stack) -> None:
    assert "unknown_format" in stack.rlt("explain", "q", "a", "--format", "none", status=1)
    assert "give a key" in stack.rlt("build", "list", "--key", "rlt_wrong", status=1)
    assert "not_found" in stack.rlt("build", "show", "1000000", status=1)
    bad = stack.rlt("score", "-q", "hello", "-a", "world", "-e", "!", status=1)
    assert "no reward: " in bad


def test_a_second_stack_beside_it_is_told_which_port_is_taken(stack, tmp_path: Path) -> None:
    port = stack.url("teacher").rpartition(":")[2]
    told = stack.rlt("up", "--detach", "--ports", port, "--state", str(tmp_path / "other"), status=1)
    assert f"port {port} (for the teacher server) is in use" in " ".join(told.split())
    assert "a stack is already running in" in stack.rlt("up", "--detach", "--ports", "free", status=1)


def test_a_model_that_is_not_there_fails_the_start_with_its_reason(stack, tmp_path: Path) -> None:
    missing = ("--teacher", str(tmp_path / "none"), "--state", str(tmp_path / "other"))
    told = stack.rlt("up", "--detach", "--ports", "free", *missing, status=1)
    assert "ended with status 1 before it was ready" in told
    assert str(tmp_path / "none") in told.replace("\n", "")


def test_down_leaves_nothing_behind(stack) -> None:
    processes = stack.processes()
    assert len(processes) > 8
    ports = [stack.url(server) for server in ("teacher", "reward", "jobs")]
    assert "stopped the stack" in stack.rlt("down")
    assert [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    for url in ports:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/livez")
    assert {each.state for each in stack.record.components.values()} <= {ComponentState.stopped, ComponentState.done}
    assert "no stack runs" in stack.rlt("down")
    assert "no stack runs" in stack.rlt("status", status=3)


def test_ctrl_c_while_a_detached_stack_starts_leaves_nothing(stack, tmp_path: Path, until) -> None:
    folder = StateFolder(tmp_path / "early")
    command = [str(RLT), "up", "--detach", "--ports", "free", "--state", str(folder.root)]
    # A shell that starts the tests in its background has them ignore Ctrl-C, and children inherit that.
    starting = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: folder.read() is not None and folder.read().components["postgres"].state is ComponentState.ready)
    supervisor = psutil.Process(folder.read().pid)
    programs = [supervisor, *supervisor.children(recursive=True)]
    starting.send_signal(signal.SIGINT)
    ended = starting.wait(60)
    left = [process for process in programs if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    subprocess.run([str(RLT), "down", "--state", str(folder.root)], stdout=subprocess.DEVNULL, check=False)
    assert (ended, left) == (130, [])
