"""Tensor parallelism: two processes hold one model, give the scores of one, and end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlt_reward_server.app import build
from rlt_reward_server.settings import Settings
from rlt_service.testing import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # processes that each import torch, two by two

START_S = 400.0  # torch is imported twice, on two busy cores
END_S = 120.0
ITEMS = [
    {"question": "What is 2 times 3?", "answer": "It is 6.", "explanation": "\n\nis carry so of"},
    {"question": "What is 4 times 5?", "answer": "It is 20.", "explanation": "\n\nso of carry is it the sum of all"},
    {"question": "What is 1 plus 1?", "answer": "2", "explanation": "\n\nis"},
]

request = partial(
    httpx.request, verify=False, timeout=60
)  # plain HTTP: reading the certificates takes most of the time


@pytest.fixture(scope="module")
def shared(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with the golden tokenizer: llamas, of which step-1 has tied embeddings and one a single key-value
    head, and one model without a plan."""
    folder = tmp_path_factory.mktemp("shared")

    def save(name: str, model: Any) -> None:
        shutil.copytree(
            golden_dir / "student", folder / name, ignore=shutil.ignore_patterns("*.safetensors", "config*")
        )
        model.save_pretrained(folder / name)

    def llama(seed: int, heads: int = 2, *, tied: bool = False) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        sizes = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=heads, initializer_range=0.1)
        config.tie_word_embeddings = tied
        return LlamaForCausalLM(config)

    save("llama", llama(1))
    save("teacher", llama(2))
    save("step-1", llama(3, tied=True))
    save("one-head", llama(4, heads=1))
    save("no-plan", GPT2LMHeadModel(GPT2Config(vocab_size=4096, n_embd=64, n_layer=1, n_head=2)))
    return folder


class Process:
    """The server as a user starts it, with two ranks."""

    def __init__(self, shared: Path, formats: Path) -> None:
        self.log = shared / f"log-{time.monotonic_ns()}"
        flags = {
            "student": shared / "llama",
            "teacher": shared / "teacher",
            "formats": formats,
            "format": "golden",
            "device": "cpu",
            "tensor-parallel": 2,
            "allowed-roots": shared,
            "port": 0,
            "cache-s": 0,
        }
        command = [sys.executable, "-m", "rlt_reward_server", *(f"--{name}={value}" for name, value in flags.items())]
        with self.log.open("w") as log:
            self.leader = psutil.Popen(command, stderr=log, stdout=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            self.url = self._ready()
        except BaseException:
            self.leader.kill()
            raise
        [self.follower] = self.leader.children()

    def _ready(self) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.leader.poll() is None, self.log.read_text()
            ended = self.log.read_text().rpartition("\n")[0].splitlines()  # the last one may be half written
            lines = [json.loads(line) for line in ended if line.startswith("{")]
            urls = [line["url"] for line in lines if line["event"] == "listening"]
            if urls and any(line["event"] == "Application startup complete." for line in lines):
                return str(urls[0])
            time.sleep(0.1)
        pytest.fail(self.log.read_text())

    def reward(self, **options: Any) -> Any:
        reply = request("POST", f"{self.url}/reward", json={"items": ITEMS, "detail": "tokens"} | options)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def load(self, name: str, source: Path, **options: Any) -> httpx.Response:
        body = {"role": "teacher", "name": name, "source": str(source), **options}
        return request("POST", f"{self.url}/models", json=body)

    def end(self) -> None:
        for process in (self.leader, self.follower):
            try:
                process.kill()
                process.wait(60)
            except (psutil.NoSuchProcess, psutil.TimeoutExpired, subprocess.TimeoutExpired):
                continue


@pytest.fixture(scope="module")
def pair(shared: Path, formats_dir: Path) -> Iterator[Process]:
    process = Process(shared, formats_dir)
    yield process
    process.end()


@pytest.fixture(scope="module")
def alone(settings: Callable[..., Settings], shared: Path) -> Iterator[str]:
    """The same models in one process."""
    given = settings(student=str(shared / "llama"), teacher=str(shared / "teacher"), allowed_roots=[shared])
    with running(lambda: build(given)) as url:
        yield url


def assert_same(found: Any, wanted: Any) -> None:
    assert (found["student"], found["teacher"]) == (wanted["student"], wanted["teacher"])
    for mine, theirs in zip(found["items"], wanted["items"], strict=True):
        for part, column in (("answer", "logprobs"), ("think", "student_logprobs"), ("think", "teacher_logprobs")):
            values = mine["token_scores"][part][column]
            assert values == pytest.approx(theirs["token_scores"][part][column], abs=1e-5)


def test_two_processes_score_as_one(pair: Process, alone: str) -> None:
    wanted = request("POST", f"{alone}/reward", json={"items": ITEMS, "detail": "tokens"}).json()
    assert_same(pair.reward(), wanted)
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: pair.reward(), range(18)):
            assert_same(found, wanted)


def test_exact_divergence_runs_in_both(pair: Process, alone: str) -> None:
    body = {"items": ITEMS, "detail": "components", "spec": {"preset": "rlt", "kl": "exact"}}
    wanted = request("POST", f"{alone}/reward", json=body).json()
    for mine, theirs in zip(pair.reward(**body)["items"], wanted["items"], strict=True):
        assert mine["reward"] == pytest.approx(theirs["reward"], abs=1e-4)


def test_each_holds_a_part(pair: Process, alone: str) -> None:
    [mine] = request("GET", f"{pair.url}/models").json()["students"]
    [whole] = request("GET", f"{alone}/models").json()["students"]
    embeddings = 2 * 4096 * 64 * 4  # of every token, in and out: not cut
    assert mine["memory_bytes"] - embeddings == pytest.approx((whole["memory_bytes"] - embeddings) / 2, rel=0.02)


def test_a_new_version_is_loaded_in_both(pair: Process, alone: str, shared: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        before = pair.reward()
        meanwhile = [pool.submit(pair.reward) for _ in range(12)]
        reply = pair.load("other", shared / "step-1")
        assert reply.status_code == 201, reply.text
        for each in meanwhile:
            assert_same(each.result(), before)
    body = {"role": "teacher", "name": "other", "source": str(shared / "step-1")}
    assert request("POST", f"{alone}/models", json=body).status_code == 201
    wanted = request("POST", f"{alone}/reward", json={"items": ITEMS, "detail": "tokens", "teacher": "other"}).json()
    assert_same(pair.reward(teacher="other"), wanted)
    assert request("DELETE", f"{pair.url}/models/teacher/other").status_code == 204
    assert_same(pair.reward(), before)


@pytest.mark.parametrize(
    ("name", "why"), [("one-head", "num_key_value_heads = 1"), ("no-plan", "no tensor-parallel plan")]
)
def test_what_cannot_be_cut(pair: Process, shared: Path, name: str, why: str) -> None:
    before = pair.reward()
    refused = pair.load("refused", shared / name)
    assert (refused.status_code, refused.json()["type"]) == (422, "unusable_model")
    assert why in refused.json()["detail"]
    assert_same(pair.reward(), before)


def test_adapters_are_refused(pair: Process, shared: Path) -> None:
    folder = shared / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    refused = pair.load("refused", folder, kind="lora", base="teacher")
    assert refused.status_code == 422
    assert "tensor parallelism" in refused.json()["detail"]


def test_sigterm_ends_both(pair: Process) -> None:
    """The last test with these two."""
    pair.leader.send_signal(signal.SIGTERM)
    assert pair.leader.wait(END_S) == 0
    pair.follower.wait(END_S)


def test_a_follower_that_is_lost(shared: Path, formats_dir: Path) -> None:
    process = Process(shared, formats_dir)
    try:
        process.follower.kill()
        process.follower.wait(60)
        deadline = time.monotonic() + 60
        while (reply := request("GET", f"{process.url}/readyz")).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert reply.status_code == 503
        assert "rank 1 of the tensor-parallel group ended with code -9" in reply.json()["detail"]
        scores = process.reward()["items"]
        assert {score["error"]["type"] for score in scores} == {"scorer_failed"}
        refused = process.load("x", shared / "step-1")
        assert (refused.status_code, refused.json()["type"]) == (503, "follower_lost")
        process.leader.send_signal(signal.SIGTERM)
        assert process.leader.wait(END_S) == 0
    finally:
        process.end()


def test_a_leader_that_is_killed_takes_its_follower_along(shared: Path, formats_dir: Path) -> None:
    process = Process(shared, formats_dir)
    try:
        process.leader.kill()
        process.follower.wait(END_S)
    finally:
        process.end()


RANKS_APART = """
import sys
from pathlib import Path
from rlt_reward_server.parallel import channel
from rlt_reward_server.parallel.team import Team
from rlt_reward_server.passes import Pass

def fails(batch):
    raise MemoryError("in this rank only")

team = Team(2, "cpu", threads=1)
scorer, _ = team.load(Path(sys.argv[1]), "float32", pickles=False, max_batch_tokens=64)
good, bad = Pass([1, 2, 3, 4], [2, 3], 1.0), Pass([1, 2, 9999, 4], [3], 1.0)
[alone] = scorer.log_probs([good])
first, failed, last = scorer.log_probs([good, bad, good])
assert first == last == alone, (first, last, alone)
assert failed.problem.type == "scorer_failed" and team.lost is None, (failed, team.lost)
scorer._body._body.hidden = fails
channel.GIVE_UP_S = 2  # the other rank never comes; where it fails too, a busy machine needs the usual time
[lost] = scorer.log_probs([good])
assert lost.problem.detail == "FollowerLost" and "no longer run one pass" in team.lost, (lost, team.lost)
team.close()
print("done")
"""


def test_a_pass_that_fails_in_one_rank_only_ends_the_service(shared: Path) -> None:
    """What fails in both costs its item only. After the other, sums of one rank would meet those of another pass."""
    command = [sys.executable, "-c", RANKS_APART, str(shared / "llama")]
    ran = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=START_S)
    assert ran.stdout.endswith(b"done\n"), ran.stderr[-2000:]


SLOW_FOLLOWER = """
import sys
import time

if "rlt_reward_server.parallel.follower" in sys.orig_argv:
    from rlt_reward_server.parallel import sharding

    def slowly(*given, read=sharding.read_shard, **named):
        module = read(*given, **named)
        time.sleep(2)
        return module

    sharding.read_shard = slowly
"""
LOADED = """
import sys
from pathlib import Path
from rlt_reward_server.parallel.team import Team

team = Team(2, "cpu", threads=1)
for _ in range(2):
    team.load(Path(sys.argv[1]), "float32", pickles=False, max_batch_tokens=64)
team.close()
print("done")
"""


def test_a_follower_that_is_slow_after_it_read_its_part(shared: Path, tmp_path: Path) -> None:
    """The leader asks it to prove a model that its other thread has read, but not yet handed over."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_FOLLOWER)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", LOADED, str(shared / "llama")]
    ran = subprocess.run(command, env=environment, capture_output=True, timeout=START_S)
    assert ran.stdout.endswith(b"done\n"), ran.stderr[-2000:]
