"""A stream over a real vLLM: who leaves it stops the work there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
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


def test_a_client_that_leaves_is_seen_on_vllm_s_own_gauge(
    teacher: httpx.Client, vllm_engine: str, mini: Format
) -> None:
    def there(name: str) -> float:
        return _sum(f"{vllm_engine}/metrics", f"vllm:{name}")

    problem = {"question": mini.probe.question, "answer": mini.probe.answer}
    body = problem | {"n": SAMPLES, "max_tokens": 240, "temperature": 2.0, "stream": True}  # seconds of work

    def ended() -> float:
        """Samples that came to their own end, of those of one who leaves."""
        before = there("request_success_total")
        with teacher.stream("POST", "/explain", json=body) as response:
            names = (line for line in response.iter_lines() if line.startswith("event: "))
            assert [next(names) for _ in range(2)] == ["event: started", "event: delta"]
            _until(lambda: there("num_requests_running{") > 0 or there("request_success_total") - before == SAMPLES)
        _until(lambda: there("num_requests_running{") == 0)
        _until(lambda: _sum(f"{teacher.base_url}/metrics", "rlt_teacher_samples_inside ") == 0)
        return there("request_success_total") - before

    for _ in range(3):  # this process may stand still for as long as the work takes
        if ended() < SAMPLES:  # the others were broken off
            return
    pytest.fail("all samples were made though their caller had left, three times")


def _sum(url: str, name: str) -> float:
    lines = httpx.get(url).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def _until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
