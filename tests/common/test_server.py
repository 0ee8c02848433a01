"""The process: its port, its address, its limits, its end."""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlt_local.ports import free
from rlt_service.auth import Authenticator
from rlt_service.keys import hash_token
from rlt_service.server import CannotListen, check_bind, listen, raise_file_limit
from rlt_service.settings import ServerSettings
from rlt_service.testing import running

KEY = "ann reward sha256:" + hash_token("k")

SCRIPT = """
import asyncio, contextlib, os, sys
from rlt_service.settings import ServerSettings, load
settings = load(ServerSettings, prog="rlt-echo")
from rlt_client.schemas.common import Scope
from rlt_service.app import create_app
from rlt_service.auth import requires
from rlt_service.health import Check
from rlt_service.revision import ModelNotFound
from rlt_service.routing import Router
from rlt_service.server import serve
router = Router()
mode = {mode!r}
@router.get("/slow", dependencies=[requires(Scope.reward)])
async def slow(seconds: float) -> str:
    print("working", flush=True)
    await asyncio.sleep(seconds)
    return "done"
@router.get("/held", dependencies=[requires(Scope.reward)])
async def held(until: str) -> str:
    print("working", flush=True)
    while not os.path.exists(until):
        await asyncio.sleep(0.02)
    return "done"
@contextlib.asynccontextmanager
async def lifespan(app):
    if mode == "no model": raise ModelNotFound("no such model folder: /models/x")
    if mode == "bug": raise ValueError("a bug")
    if mode == "slow":
        try:
            print("loading", flush=True)
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            print("let go", flush=True)
    yield
    print("cleaned up", flush=True)
async def ready(): return {{"loop": Check(ok=True)}}
def build():
    options = dict(title="rlt-echo", version="1", settings=settings)
    return create_app(routers=[router], ready=ready, lifespan=lifespan, **options)
serve(build, settings, prog="rlt-echo")
"""


def command(*args: str, mode: str = "") -> list[str]:
    return [sys.executable, "-c", SCRIPT.format(mode=mode), *args]


def run(*args: str, mode: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args, mode=mode), capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def started(*args: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    [port] = free()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        command("--port", str(port), *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until_ready(url)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not get ready")


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_port_in_use(url: str) -> None:
    port = url.rpartition(":")[2]
    done = run("--port", port)
    assert done.returncode == 1
    assert last_line(done) == f"rlt-echo: error: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_a_port_is_taken_before_the_first_request() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(CannotListen, match="Address already in use"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()  # and is free again at once


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours(host: str) -> None:
    with pytest.raises(CannotListen, match=f"cannot listen on {host}:0"):
        listen(host, 0)


def test_localhost_is_ipv4() -> None:
    with listen("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_wide_address_without_keys_is_refused() -> None:
    done = run("--host", "0.0.0.0")
    assert done.returncode == 1
    begin = "rlt-echo: error: 0.0.0.0 can be reached from outside, and there are no keys: give RLT_KEYS_FILE"
    assert last_line(done).startswith(begin)
    assert "RLT_ALLOW_ANONYMOUS=1" in last_line(done)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_which_addresses_are_wide(host: str) -> None:
    settings = ServerSettings(host=host)
    with pytest.raises(CannotListen):
        check_bind(settings, Authenticator.of(settings))
    for open_settings in (ServerSettings(host=host, keys=KEY), ServerSettings(host=host, allow_anonymous=True)):
        check_bind(open_settings, Authenticator.of(open_settings))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1", "localhost"])
def test_which_addresses_are_not(host: str) -> None:
    settings = ServerSettings(host=host)
    check_bind(settings, Authenticator.of(settings))


@pytest.mark.parametrize("args", [["--allow-anonymous"], ["--keys", KEY]], ids=["anonymous", "keys"])
def test_a_wide_address_on_purpose(args: list[str]) -> None:
    with started("--host", "0.0.0.0", *args) as (_, url):
        expected = 200 if args == ["--allow-anonymous"] else 401
        assert httpx.get(f"{url}/slow?seconds=0").status_code == expected


def test_bad_keys_are_one_line() -> None:
    done = run("--keys", "ann reward nonsense")
    assert done.returncode == 1
    assert last_line(done).startswith("rlt-echo: error: keys, line 1: want `OWNER")


def test_a_missing_model_is_one_line() -> None:
    done = run("--port", "0", mode="no model")
    assert done.returncode == 1
    assert last_line(done) == "rlt-echo: error: no such model folder: /models/x"


def test_a_bug_at_start_leaves_its_traceback() -> None:
    done = run("--port", "0", mode="bug")
    assert done.returncode == 3
    assert "ValueError: a bug" in done.stderr


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_takes_long_is_broken_off(sign: signal.Signals) -> None:
    process = subprocess.Popen(
        command("--port", "0", mode="slow"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(sign)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (128 + sign, "let go\n")
    assert "Traceback" not in errors
    assert '"level": "error"' not in errors


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_are_finished(sign: signal.Signals) -> None:
    with started() as (process, url):
        assert process.stdout is not None
        request = subprocess.Popen(
            [sys.executable, "-c", f"import httpx; print(httpx.get('{url}/slow?seconds=1', timeout=60).text)"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "working\n"
        process.send_signal(sign)
        assert request.communicate(timeout=60)[0] == '"done"\n'
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output == "cleaned up\n"
    assert "Traceback" not in errors


def test_what_comes_after_sigterm_is_sent_elsewhere_and_the_rest_is_finished(tmp_path: Path) -> None:
    refusals_seen = tmp_path / "seen"
    with started() as (process, url), httpx.Client(base_url=url) as idle:
        assert process.stdout is not None
        assert idle.get("/livez").status_code == 200
        request = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import httpx; print(httpx.get('{url}/held?until={refusals_seen}', timeout=60).text)",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "working\n"
        process.terminate()
        while idle.get("/readyz").status_code == 200:  # the signal is on its way
            time.sleep(0.01)
        refused = idle.get("/slow?seconds=0")
        assert (refused.status_code, refused.json()["type"]) == (503, "stopping")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        assert httpx.get(f"{url}/livez").status_code == 200
        refusals_seen.touch()
        assert request.communicate(timeout=60)[0] == '"done"\n'
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "cleaned up\n")
    assert "Traceback" not in errors


def test_requests_that_outlast_the_grace_are_broken_off() -> None:
    with started("--shutdown-grace-s", "1") as (process, url):
        assert process.stdout is not None
        request = subprocess.Popen(
            [sys.executable, "-c", f"import httpx; print(httpx.get('{url}/slow?seconds=60', timeout=90).text)"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "working\n"
        begun = time.monotonic()
        process.terminate()
        output, errors = process.communicate(timeout=60)
        assert '"type":"stopping"' in request.communicate(timeout=60)[0]
    assert time.monotonic() - begun < 50
    assert process.returncode == 0
    assert "cleaned up" in output
    assert "Traceback" not in errors


def test_the_file_limit_is_raised_to_what_is_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_burst_of_connections_is_taken(url: str) -> None:
    """More than the usual backlog of 128, at once, before any of them is answered."""
    port = int(url.rpartition(":")[2])
    connections = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(300)]
    try:
        for connection in connections:
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert all(connection.recv(15) == b"HTTP/1.1 200 OK" for connection in connections)
    finally:
        for connection in connections:
            connection.close()


def test_running_takes_an_app_or_a_factory(build: Any) -> None:
    app = build()
    for source in (app, lambda: app):
        with running(source) as base_url:
            assert httpx.get(f"{base_url}/livez").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{base_url}/livez")


def test_running_raises_what_the_start_raised(build: Any) -> None:
    def lifespan(_app: object) -> Any:
        raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"), running(lambda: build(lifespan=lifespan)):
        pass
