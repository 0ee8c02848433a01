"""What containers are asked by: a URL or a heartbeat file, as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from rlt_service.probe import main
from rlt_service.testing import running


@pytest.fixture(scope="module")
def server():
    app = FastAPI()

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/loading")
    async def loading() -> JSONResponse:
        return JSONResponse({"detail": "waiting for model"}, status_code=503)

    with running(app) as url:
        yield url


def test_an_answer_is_ready(server):
    assert main([f"{server}/readyz"]) == 0


def test_a_refusal_is_told_in_the_servers_words(server, capsys):
    assert main([f"{server}/loading"]) == 1
    assert capsys.readouterr().err == "waiting for model\n"


def test_nobody_listens(capsys):
    assert main(["http://127.0.0.1:9/readyz"]) == 1
    assert capsys.readouterr().err == "not listening yet\n"


def test_a_heartbeat_is_good_while_it_is_fresh(tmp_path: Path, capsys):
    beat = tmp_path / "beat"
    assert main([str(beat)]) == 1
    beat.touch()
    assert main([str(beat)]) == 0
    minutes_ago = time.time() - 120
    os.utime(beat, (minutes_ago, minutes_ago))
    assert main([str(beat)]) == 1
    assert main([str(beat), "--max-age", "300"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"no heartbeat yet in {beat}\n")
    assert "the last heartbeat is 12" in said


def test_it_is_a_program_that_imports_nothing_heavy(tmp_path: Path):
    """An orchestrator starts one every few seconds beside a server that needs the processor."""
    (tmp_path / "beat").touch()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rlt_service.probe", str(tmp_path / "beat")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "asyncio" in imported
    assert not imported & {"pydantic", "httpx", "fastapi", "prometheus_client", "opentelemetry"}
