"""SIGTERM under load, to the process as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlt_local.ports import free

START_S = 90.0  # torch alone takes ten on two busy cores
CALLS = 12
HELD = """
import time
from pathlib import Path
from rlt_reward_server import app
from rlt_reward_server.__main__ import main

run, held, hold = app.run, Path({held!r}), Path({hold!r})

def waits(*batch):
    while hold.exists():
        held.touch()
        time.sleep(0.01)
    return run(*batch)

app.run = waits
main()
"""


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """While this file is there, no batch comes to an end."""
    return tmp_path / "hold"


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """It is there once a batch is held."""
    return tmp_path / "held"


@pytest.fixture
def server(
    golden_dir: Path, formats_dir: Path, tmp_path: Path, hold: Path, held: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    [port] = free()
    flags = {"student": golden_dir / "student", "formats": formats_dir, "format": "golden", "preset": "ss_only"}
    options = {**flags, "port": port, "threads": 1}
    code = HELD.format(hold=str(hold), held=str(held))
    command = [sys.executable, "-c", code, *(f"--{name}={value}" for name, value in options.items())]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=stderr, stderr=stderr)
    try:
        yield process, f"http://127.0.0.1:{port}", log
    finally:
        process.kill()
        process.wait(60)


def item(number: int) -> dict[str, Any]:
    return {"question": f"What is {number} times 3?", "answer": "6", "explanation": "\n\nis carry"}


def until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail("not ready in time")


def waiting(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("rlt_reward_queue_passes ")).split()[1])


def test_what_was_accepted_is_answered_and_what_comes_after_is_refused(
    server: tuple[subprocess.Popen[bytes], str, Path], hold: Path, held: Path
) -> None:
    process, url, log = server
    with httpx.Client(base_url=url, timeout=60, verify=False) as client, ThreadPoolExecutor(CALLS + 1) as pool:
        until_ready(client, process)
        hold.touch()
        calls = [pool.submit(client.post, "/reward", json={"items": [item(CALLS)]})]
        while not held.exists():
            time.sleep(0.01)
        calls += [pool.submit(client.post, "/reward", json={"items": [item(n)]}) for n in range(CALLS)]
        while waiting(client) < CALLS:
            time.sleep(0.01)
        process.terminate()
        while client.get("/version").status_code == 200:  # the signal is on its way
            time.sleep(0.01)
        refused = client.post("/reward", json={"items": [item(99)]})
        hold.unlink()
        replies = [call.result() for call in calls]
    assert (refused.status_code, refused.json()["type"]) == (503, "stopping")
    assert refused.headers["retry-after"] == "1"
    assert [reply.status_code for reply in replies] == [200] * (CALLS + 1)
    assert all(reply.json()["items"][0]["status"] == "scored" for reply in replies)
    assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()
