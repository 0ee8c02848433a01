"""A teacher server that starts a real vLLM on the processor, as a process of its own: one start for all of them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from rlt_local.ports import free

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,  # vLLM is started four times
    pytest.mark.timeout(900),
]

START_S = 300.0  # with other tests on the same two cores


@dataclass(frozen=True)
class Teacher:
    process: psutil.Process
    url: str
    folder: Path
    """Its TMPDIR."""

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=60).is_success
        except httpx.HTTPError:
            return False

    def engine(self) -> psutil.Process:
        """vLLM's own first process."""
        [found] = [child for child in self.process.children() if "serve" in child.cmdline()]
        return found

    def explain(self) -> list[str]:
        body = {"question": "Q 36 A +5 B *3 C +11 D +5", "answer": "17", "n": 2, "max_tokens": 27, "seed": 4}
        answer = httpx.post(f"{self.url}/explain", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return sorted(explanation["completion"] for explanation in answer.json()["explanations"])


def command(python: Path, model: Path, port: int, *more: str) -> list[str]:
    words = (sys.executable, "-m", "rlt_teacher_server", "--model", str(model), "--format", "mini", "--port", str(port))
    return [*words, "--engine", "launch", "--engine-python", str(python), "--engine-memory-mib", "256", *more]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition, seconds: float = START_S) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "the condition was not met in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def teacher(tiny_model, engine_python, tmp_path_factory) -> Iterator[Teacher]:
    [port], folder = free(), tmp_path_factory.mktemp("t")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command(engine_python, tiny_model, port), stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(folder)}
        )
    running = Teacher(psutil.Process(process.pid), f"http://127.0.0.1:{port}", folder)
    try:
        until(lambda: running.ready() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield running
    finally:
        tree = running.process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0
        until(lambda: not any(map(alive, tree)), 60)
        assert not list(folder.glob("rlt-vllm-*"))


def test_it_explains(teacher):
    assert len(teacher.explain()) == 2


def test_nobody_else_reaches_the_engine(teacher):
    """Its routes ask for no key: they are on a socket in a folder of its user's, and on no port."""
    [folder] = teacher.folder.glob("rlt-vllm-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "vllm-0.sock").is_socket()
    tree = [teacher.engine(), *teacher.engine().children(recursive=True)]
    ports = {c.laddr.port for each in tree for c in each.net_connections() if c.status == psutil.CONN_LISTEN}
    assert [port for port in ports if speaks_http(port, within=1)] == []
    assert speaks_http(int(teacher.url.rpartition(":")[2]), within=60)


def speaks_http(port: int, *, within: float) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/version", timeout=within)
    except httpx.HTTPError:  # torch's own protocol, on loopback
        return False
    return True


def test_a_killed_engine_comes_back_with_the_same_weights(teacher):
    before, killed = teacher.explain(), teacher.engine()
    killed.kill()
    until(lambda: not teacher.ready())
    until(teacher.ready)
    assert teacher.engine().pid != killed.pid
    assert teacher.explain() == before


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        (None, "--engine-args=--no-such-flag 3", "it does not know --no-such-flag"),
        (None, "--engine-max-model-len=100000", "User-specified max_model_len (100000) is greater than the derived"),
        ("head size 16", "", "RuntimeError: Unsupported CPU attention configuration: head_dim=16"),
    ],
)
def test_a_start_that_cannot_succeed(model, more, words, tiny_model, engine_python, pytestconfig):
    golden = pytestconfig.rootpath / "tests" / "reward_server"
    given = [more] if more else ["--formats", str(golden / "formats"), "--format", "golden"]
    argv = command(engine_python, golden / "golden" / "teacher" if model else tiny_model, 0, *given)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("rlt-teacher-server: error: vllm-0 (vLLM 0.31.0+cpu, cpu) ended with status")
    assert words in last
