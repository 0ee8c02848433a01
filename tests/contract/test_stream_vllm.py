"""A stream over a real vLLM: who leaves it stops the work there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from rlt_client.formats import Format
from rlt_service.testing import running
from rlt_teacher_server.app import build
from rlt_teacher_server.settings import Settings

pytestmark = pytest.mark.engine
SAMPLES = 128
WAIT_S = 60.0  # a new engine's first batch on busy cores


@pytest.fixture
def teacher(tiny_model: Path, vllm_engine: str) -> Iterator[httpx.Client]:
    given = Settings(model=str(tiny_model), format="mini", engine=[vllm_engine])
    with running(lambda: build(given)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def server(vllm_engine: str) -> psutil.Process:
    """vLLM's HTTP server."""
    here = urlsplit(vllm_engine).port
    [pid] = {
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == here
    }
    return psutil.Process(pid)


@pytest.fixture
def core(server: psutil.Process) -> Iterator[psutil.Process]:
    """The process that computes. While it is suspended, no sample ends."""
    children = server.children(recursive=True)
    [found] = [each for each in children if "EngineCore" in " ".join(each.cmdline())]
    yield found
    found.resume()


def test_a_client_that_leaves_is_seen_on_vllm_s_own_gauge(
    teacher: httpx.Client, vllm_engine: str, server: psutil.Process, core: psutil.Process, mini: Format
) -> None:
    def there(name: str) -> float:
        return _sum(f"{vllm_engine}/metrics", f"vllm:{name}")

    problem = {"question": mini.probe.question, "answer": mini.probe.answer}
    body = problem | {"n": SAMPLES, "max_tokens": 240, "temperature": 2.0, "stream": True}  # 0.3 s of work

    def ended() -> float:
        """Samples that came to their own end, of those of one who leaves."""
        before, connections = there("request_success_total"), connected(server)
        with teacher.stream("POST", "/explain", json=body) as response:
            names = (line for line in response.iter_lines() if line.startswith("event: "))
            assert [next(names) for _ in range(2)] == ["event: started", "event: delta"]
            core.suspend()
            while not there("num_requests_running{") and there("request_success_total") - before < SAMPLES:
                core.resume()
                time.sleep(0.005)  # of work between two looks, however long these take
                core.suspend()
        _until(lambda: _sum(f"{teacher.base_url}/metrics", "rlt_teacher_samples_inside ") == 0)
        _until(lambda: connected(server) <= connections)
        core.resume()
        one = teacher.post("/explain", json=problem | {"max_tokens": 1})  # the gauge is set at steps alone
        assert one.status_code == 200
        _until(lambda: there("num_requests_running{") == 0)
        return there("request_success_total") - before - 1

    for _ in range(3):  # a busy machine may do all of it meanwhile
        if ended() < SAMPLES:  # the others were broken off
            return
    pytest.fail("all samples were made though their caller had left, three times")


def connected(server: psutil.Process) -> int:
    return sum(each.status != psutil.CONN_LISTEN for each in server.net_connections("tcp"))


def _sum(url: str, name: str) -> float:
    lines = httpx.get(url).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def _until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
