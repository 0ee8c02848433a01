"""A stack's folder, its ports and keys; `rlt status`, `rlt logs` and `rlt down` over it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rlt_client.schemas.common import Scope
from rlt_local import logs as logs_module
from rlt_local import ports
from rlt_local.keys import prepare_keys
from rlt_local.logs import LOG_LIMIT, followed, last_lines, log_files
from rlt_local.ports import HOST, PortTaken, choose, free, taken
from rlt_local.state import AlreadyRunning, ComponentRecord, ComponentState, StackRecord, StackState, StateFolder
from rlt_local.status import current
from rlt_local.stop import is_alive, stop
from rlt_service.keys import hash_token, parse_keys


def a_record(pid: int, created: float, **components: ComponentRecord) -> StackRecord:
    return StackRecord(
        state=StackState.ready, pid=pid, pid_created=created, urls={}, key_file="", components=components
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_in_the_folder_is_its_owners_only(folder: StateFolder) -> None:
    prepare_keys(folder)
    folder.write(a_record(1, 0.0))
    assert mode(folder.root) == 0o700
    assert mode(folder.key_file) == 0o600
    assert mode(folder.record_file) == 0o600


def test_a_record_is_replaced_whole(folder: StateFolder) -> None:
    """Written again and again while it is read: never a part of it."""
    record = a_record(1, 0.0, worker=ComponentRecord(note="x" * 20_000))
    folder.write(record)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            folder.write(record)

    writer = threading.Thread(target=write)
    writer.start()
    read = [folder.read() for _ in range(300)]
    done.set()
    writer.join()
    assert read == [record] * 300
    assert [path.name for path in folder.root.iterdir() if path.name.startswith(".stack")] == []


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 1'])
def test_a_record_that_is_none_counts_as_no_stack(folder: StateFolder, text: str) -> None:
    folder.record_file.write_text(text)
    assert folder.read() is None
    assert current(folder) == (None, False)
    assert stop(folder) is False


def test_one_supervisor_at_a_time(folder: StateFolder) -> None:
    with folder.locked(), pytest.raises(AlreadyRunning, match="a stack is already running"), folder.locked():
        pass
    with folder.locked():
        pass


def test_keys_are_made_once_and_open_no_more_than_needed(folder: StateFolder) -> None:
    keys = prepare_keys(folder)
    assert prepare_keys(folder).tokens == keys.tokens
    reward = {key.owner: key for key in parse_keys(keys.files["reward"].read_text(), "reward.keys")}
    assert reward["teacher"].scopes == {Scope.reward}
    assert reward["local"].scopes == set(Scope)
    assert reward["jobs"].hash == hash_token(keys.tokens["jobs"])
    assert not any(token in keys.files["reward"].read_text() for token in keys.tokens.values())
    assert len(set(keys.tokens.values())) == 3


def test_a_taken_port_is_named_with_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert taken(listener.getsockname()[1])
    monkeypatch.setattr(ports, "taken", {8002}.__contains__)
    with pytest.raises(PortTaken, match=r"port 8002 \(for the reward server\) is in use on 127.0.0.1"):
        choose(8001)


def test_free_ports_are_free_and_different() -> None:
    found = free(20)
    assert len(set(found)) == 20
    assert not any(map(taken, found))
    for port in found:  # those who ask for any port are not given it: it can be had by name only, as servers ask for it
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, port))
    assert set(choose(None)) == {"teacher", "reward", "jobs"}


def test_down_where_nothing_runs_succeeds_again_and_again(folder: StateFolder) -> None:
    assert stop(folder) is False
    assert stop(folder) is False


def test_down_puts_the_record_of_a_killed_supervisor_right(folder: StateFolder) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder.write(a_record(dead.pid, time.time(), worker=ComponentRecord(state=ComponentState.ready)))
    assert stop(folder) is False
    assert folder.read().state is StackState.stopped
    assert folder.read().components["worker"].state is ComponentState.stopped


def test_a_number_given_out_again_is_nobodys_supervisor(folder: StateFolder) -> None:
    """The record names this very process, but another start of it: it must not be signalled."""
    mine = psutil.Process()
    assert is_alive(a_record(os.getpid(), mine.create_time()))
    folder.write(a_record(os.getpid(), mine.create_time() - 100))
    assert stop(folder) is False


def test_a_supervisor_that_does_not_end_is_killed(folder: StateFolder, until) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    stubborn = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert stubborn.stdout.readline() == b"on\n"
    folder.write(a_record(stubborn.pid, psutil.Process(stubborn.pid).create_time()))
    reaper = threading.Thread(target=stubborn.wait)
    reaper.start()
    assert stop(folder, patience=0.3) is True
    reaper.join(60)
    assert stubborn.returncode == -9
    stubborn.stdout.close()


def test_status_asks_the_servers_again(folder: StateFolder) -> None:
    (port,) = free()
    gone = ComponentRecord(state=ComponentState.ready, url=f"http://127.0.0.1:{port}")
    mine = psutil.Process()
    folder.write(a_record(mine.pid, mine.create_time(), reward=gone))
    record, healthy = current(folder)
    assert record.components["reward"].note == "not listening yet"
    assert healthy is False


def test_last_lines_of_one_log_or_of_all(folder: StateFolder) -> None:
    folder.log("api").write_text("1\n2\n3\n")
    folder.log("worker").write_text("4\n")
    assert [line for _, line in last_lines(log_files(folder, None), 2)] == ["2", "3", "4"]
    assert [line for _, line in last_lines(log_files(folder, "worker"), 2)] == ["4"]
    assert log_files(folder, "nobody") == []
    assert list(last_lines(log_files(folder, "api"), 0)) == []


def test_a_followed_log_gives_whole_lines_and_survives_being_set_aside(folder: StateFolder, monkeypatch) -> None:
    log = folder.log("api")
    log.write_text("old\n")
    written = iter(["half", " line\nnext", "\n", None, "\n"])

    def write(_: float) -> None:
        text = next(written)
        if text is None:
            log.write_text("a")  # a new, shorter file under the old name
        else:
            with log.open("a") as file:
                file.write(text)

    monkeypatch.setattr(logs_module.time, "sleep", write)
    lines = followed([log])
    assert [next(lines)[1] for _ in range(3)] == ["half line", "next", "a"]


async def test_a_large_log_is_set_aside_when_its_program_starts_again(folder: StateFolder, stack, script) -> None:
    log = folder.log("api")
    with log.open("wb") as file:
        file.truncate(LOG_LIMIT + 1)
    supervisor, _ = stack(script("api", "raise SystemExit('new')", once=True))
    await supervisor.run()
    assert log.read_text() == "new\n"
    assert log.with_suffix(".log.1").stat().st_size == LOG_LIMIT + 1


def test_the_clients_commands_read_what_the_supervisor_writes(folder: StateFolder) -> None:
    from rlt_client.cli.connection import Service, find_service

    keys = prepare_keys(folder)
    record = a_record(1, 0.0)
    record.urls, record.key_file = {"jobs": "http://127.0.0.1:1234"}, str(folder.key_file)
    folder.write(record)
    assert find_service("jobs", None, None, folder.root) == Service(
        "jobs", "http://127.0.0.1:1234", keys.tokens["local"]
    )
    assert json.loads(folder.record_file.read_text())["schema_version"] == 1
