"""Start in order, readiness, crash at start, restart, stop in reverse, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from rlt_local import supervisor as supervisor_module
from rlt_local.logs import tail
from rlt_local.ports import free
from rlt_local.state import ComponentState, StackState, StateFolder
from rlt_service.probe import http_ready

SLEEP = "import time; time.sleep(600)"


def file_ready(path: Path):
    async def probe() -> str | None:
        return None if path.exists() else f"no {path.name} yet"  # noqa: ASYNC240 a local file, in a test

    return probe


async def run_until(supervisor, record, condition) -> StackState:
    """Run, and stop as soon as the condition holds."""
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(60):
        while not (condition() or running.done()):  # noqa: ASYNC110 conditions of other processes have no event
            await asyncio.sleep(0.02)
        supervisor.stop()
        return await running


async def test_what_others_need_is_ready_before_they_start(stack, script, tmp_path: Path) -> None:
    first = f"""
        import pathlib, time
        time.sleep(0.2); pathlib.Path({str(tmp_path / "first")!r}).touch(); time.sleep(600)
    """
    second = f"import pathlib, time; assert pathlib.Path({str(tmp_path / 'first')!r}).exists(); time.sleep(600)"
    up, record = stack(
        script("first", first, ready=file_ready(tmp_path / "first")), script("second", second, needs=("first",))
    )
    assert await run_until(up, record, lambda: record.state is StackState.ready) is StackState.stopped
    assert record.components["first"].took >= 0.2


async def test_a_task_must_end_well_before_others_start(stack, script, tmp_path: Path) -> None:
    made = tmp_path / "made"
    up, record = stack(
        script("task", f"import pathlib; pathlib.Path({str(made)!r}).touch()", once=True),
        script("user", f"import pathlib, time; pathlib.Path({str(made)!r}).stat(); time.sleep(600)", needs=("task",)),
    )
    await run_until(up, record, lambda: record.state is StackState.ready)
    assert record.components["task"].state is ComponentState.done


async def test_readiness_is_asked_for_over_http(stack, script) -> None:
    """503 until the third request: a server that listens is not yet a server that is ready."""
    (port,) = free()
    code = f"""
        from http.server import BaseHTTPRequestHandler, HTTPServer
        class Handler(BaseHTTPRequestHandler):
            asked = 0
            def do_GET(self):
                Handler.asked += 1
                self.send_response(200 if Handler.asked > 2 else 503)
                self.end_headers()
        HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
    """
    probe = http_ready(f"http://127.0.0.1:{port}/readyz")
    assert await probe() == "not listening yet"
    up, record = stack(script("server", code, ready=probe))
    notes: list[str] = []
    await run_until(
        up, record, lambda: notes.append(record.components["server"].note) or record.state is StackState.ready
    )
    assert record.components["server"].took is not None


async def test_a_crash_at_start_shows_its_last_words_and_stops_the_rest(stack, script, folder: StateFolder) -> None:
    up, record = stack(
        script("steady", SLEEP),
        script("broken", "import sys; print('no such model'); sys.exit(3)", ready=file_ready(Path("/nowhere"))),
    )
    assert await up.run() is StackState.failed
    assert record.error == "broken ended with status 3 before it was ready"
    assert record.error_log == ["no such model"]
    assert record.components["steady"].pid is None
    assert folder.read() == record


async def test_a_failed_task_fails_the_stack(stack, script) -> None:
    up, record = stack(script("task", "raise SystemExit('cannot migrate')", once=True))
    assert await up.run() is StackState.failed
    assert record.error == "task ended with status 1 before it was done"
    assert record.error_log == ["cannot migrate"]


async def test_a_program_that_does_not_exist_fails_the_stack(stack, script, folder: StateFolder) -> None:
    from rlt_local.component import Component

    up, record = stack(Component("ghost", ("/no/such/program",)))
    assert await up.run() is StackState.failed
    assert record.error.startswith("ghost could not be started: ")


async def test_what_never_gets_ready_is_named(stack, script) -> None:
    up, record = stack(script("slow", SLEEP, ready=file_ready(Path("/nowhere/model"))), start_timeout=1.2)
    assert await up.run() is StackState.failed
    assert record.error == "slow was not ready within 1.2 s (no model yet)"


async def test_a_killed_program_comes_back(stack, script, monkeypatch) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE", 0.05)
    up, record = stack(script("worker", SLEEP))
    killed: list[int] = []

    def came_back() -> bool:
        mine = record.components["worker"]
        if record.state is StackState.ready and not killed:
            killed.append(mine.pid)
            os.kill(mine.pid, signal.SIGKILL)
        return mine.restarts == 1 and mine.state is ComponentState.ready

    assert await run_until(up, record, came_back) is StackState.stopped
    assert not psutil.pid_exists(killed[0])


async def test_a_program_that_cannot_be_started_again_is_tried_again(
    stack, script, tmp_path: Path, monkeypatch
) -> None:
    """Its folder is away for a while: the rest of the stack has to stay."""
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE", 0.05)
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    up, record = stack(script("database", SLEEP, cwd=home), script("api", SLEEP))
    seen: list[str] = []

    def came_back() -> bool:
        mine = record.components["database"]
        if record.state is StackState.ready and home.exists() and not seen:
            home.rename(away)
            os.kill(mine.pid, signal.SIGKILL)
        if mine.note and mine.note not in seen:
            seen.append(mine.note)
        if any(note.startswith("could not be started") for note in seen) and away.exists():
            away.rename(home)
        return len(seen) > 1 and mine.state is ComponentState.ready

    assert await run_until(up, record, came_back) is StackState.stopped
    assert record.components["api"].restarts == 0


async def test_pauses_grow_while_a_program_keeps_ending(stack, script, monkeypatch) -> None:
    """0.02 + 0.04 + 0.08 s of pauses lie before the fourth start."""
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE", 0.02)
    up, record = stack(script("flapping", ""))
    begun = time.monotonic()
    assert await run_until(up, record, lambda: record.components["flapping"].restarts >= 4) is StackState.stopped
    assert time.monotonic() - begun > 0.14


async def test_stops_in_reverse_and_asks_before_it_kills(stack, script, tmp_path: Path) -> None:
    log = tmp_path / "order"

    def polite(name: str) -> str:
        return f"""
            import pathlib, signal, sys, time
            def end(*_):
                with open({str(log)!r}, "a") as file: file.write({name + " "!r})
                sys.exit(0)
            signal.signal(signal.SIGTERM, end)
            pathlib.Path({str(tmp_path / name)!r}).touch()
            time.sleep(600)
        """

    stubborn = f"""
        import pathlib, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path({str(tmp_path / "stubborn")!r}).touch()
        time.sleep(600)
    """
    up, record = stack(
        script("database", polite("database"), ready=file_ready(tmp_path / "database")),
        script("api", polite("api"), ready=file_ready(tmp_path / "api"), needs=("database",)),
        script("stubborn", stubborn, ready=file_ready(tmp_path / "stubborn"), needs=("api",), stop_grace=0.2),
    )
    await run_until(up, record, lambda: record.state is StackState.ready)
    assert log.read_text() == "api database "
    assert {mine.state for mine in record.components.values()} == {ComponentState.stopped}


async def test_the_whole_group_of_a_dead_program_ends(stack, script, tmp_path: Path, monkeypatch) -> None:
    """A pool whose parent is killed leaves children; they must not live on beside the next parent's."""
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE", 0.05)
    code = f"""
        import os, time
        if os.fork() == 0:
            with open({str(tmp_path / "child")!r}, "a") as file: file.write(f"{{os.getpid()}} ")
        time.sleep(600)
    """
    up, record = stack(script("pool", code, ready=file_ready(tmp_path / "child")))
    children: list[int] = []

    def again() -> bool:
        if record.state is StackState.ready and not children and (pid := (tmp_path / "child").read_text()):
            children.append(int(pid))
            os.kill(record.components["pool"].pid, signal.SIGKILL)
        return len((tmp_path / "child").read_text().split()) == 2 if children else False

    await run_until(up, record, again)
    assert not _alive(children[0])


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


SUPERVISE = """
import asyncio, os, sys
from pathlib import Path
import psutil
from rlt_local.component import Component
from rlt_local.state import ComponentRecord, StackRecord, StateFolder
from rlt_local.supervisor import Supervisor

folder = StateFolder(Path(sys.argv[1])); folder.make()
code = '''
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with open("pids", "a") as file: file.write(f"{os.getpid()} ")
time.sleep(600)
'''
components = [Component(name, (sys.executable, "-c", code)) for name in ("one", "two")]
record = StackRecord(pid=os.getpid(), pid_created=0, urls={}, key_file="",
                     components={c.name: ComponentRecord() for c in components})
asyncio.run(Supervisor(components, folder, record).run())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_outlives_the_supervisor(number: int, tmp_path: Path, until) -> None:
    """Two programs that ignore SIGTERM, with a child each, which PR_SET_PDEATHSIG alone does not reach."""
    supervisor = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SUPERVISE), str(tmp_path)])
    pids = tmp_path / "pids"
    until(lambda: pids.exists() and len(pids.read_text().split()) == 4)
    if number != signal.SIGKILL:
        supervisor.send_signal(number)
        time.sleep(0.1)  # the second signal is the impatient one: kill now
        supervisor.send_signal(number)
    else:
        supervisor.kill()
    supervisor.wait(60)
    until(lambda: not any(_alive(int(pid)) for pid in pids.read_text().split()))
    until(lambda: not _wardens(supervisor.pid))


def _wardens(parent: int) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline", "ppid"]) if p.info["ppid"] == parent]


def test_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert tail(log, 5) == []
    log.write_text("".join(f"{i}\n" for i in range(100)))
    assert tail(log, 2) == ["98", "99"]
    assert tail(log, 5, start=log.stat().st_size) == []
