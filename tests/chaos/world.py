"""The whole service as real processes, and what can be done to them."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
import redis
from chaos.parts import Disk, Part, python
from chaos.schedule import FULL, Act, Kind
from chaos.stand_in import LET_GO

from rlt_jobs import migrate
from rlt_jobs.store.files import Store
from rlt_local.databases import Program, prepare_postgres, prepare_valkey
from rlt_local.ports import free

__all__ = ["World", "answers"]

LATENCY = 0.5  # seconds of an explanation: every kill finds requests under way
TIMES = {  # everything that the service waits for, shorter, so that a run sees it many times
    "lease_seconds": 4,
    "heartbeat_seconds": 1,
    "flush_seconds": 0.5,
    "patience_seconds": 0.5,
    "relay_seconds": 0.1,
    "reap_seconds": 0.5,
    "reconcile_seconds": 2,
    "canary_seconds": 3,
}
SIZES = {
    "shard_samples": 32,
    "import_batch": 100,
    "compact_bytes": 2**17,  # several files a version
    "concurrency": 2,
    "start_in_flight": 8,
    "max_in_flight": 16,
}


class World:
    """Everything in `folder`. Processes die with the thread that made them."""

    host = "127.0.0.1"
    """Where teacher, reward server and broker listen."""

    def __init__(self, folder: Path, programs: Sequence[str] = FULL.programs, *, held: int | None = None) -> None:
        """`held`: problems from this number on get no explanation before `let_go`, so that no build ends before."""
        self._held = held
        self.folder = folder.resolve()
        self._names = programs
        self.disk = Disk(self.folder / "disk")
        self.parts: dict[str, Part] = {}
        self.api = ""

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.disk.make()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        databases = self._databases()
        for program in databases:
            self._add(program).start()
        for program in databases:
            self.parts[program.name].wait_ready()
        self._fill_database()
        for program in self._programs():
            self._add(program).start()
        for part in self.parts.values():
            part.wait_ready()

    def _fill_database(self) -> None:
        """Before anything works on it."""
        migrate.upgrade(self.database_url)

    def _add(self, program: Program) -> Part:
        part = self.parts[program.name] = Part(program, self.folder / f"{program.name}.log")
        return part

    def _databases(self) -> list[Program]:
        return [
            prepare_postgres(self.folder / "postgres"),  # durable: an immediate stop may lose nothing committed
            prepare_valkey(self.folder / "valkey", *free(host=self.host), durable=False),
        ]

    def _programs(self) -> list[Program]:
        teacher, reward, api = *free(2, self.host), *free()
        self.api = f"http://127.0.0.1:{api}"
        self.env = self._settings(teacher, reward, api)
        servers = [self._stand_in("teacher", teacher), self._stand_in("reward", reward)]
        return [*servers, *map(self._jobs, self._names)]

    def _stand_in(self, name: str, port: int) -> Program:
        held = () if self._held is None else (str(self._held),)
        url, args = f"http://{self.host}:{port}/readyz", (str(port), str(LATENCY), self.host, *held)
        return python("chaos.stand_in", *args, name=name, cwd=self.folder, env={}, ready=partial(answers, url))

    def _jobs(self, name: str) -> Program:
        command = name.partition("-")[0]
        ready = partial(answers, f"{self.api}/readyz") if command == "api" else lambda: True
        return python("rlt_jobs", command, name=name, cwd=self.folder, env=self.env, ready=ready)

    def _settings(self, teacher: int, reward: int, api: int) -> dict[str, str]:
        given = {
            "database_url": self.database_url,
            "redis_url": self.parts["valkey"].program.url,
            "teacher_url": f"http://{self.host}:{teacher}",
            "reward_url": f"http://{self.host}:{reward}",
            **self._store_settings(),
            "port": api,
            **TIMES,
            **SIZES,
        }
        return {f"RLT_JOBS_{name}".upper(): str(value) for name, value in given.items()}

    def _store_settings(self) -> dict[str, Any]:
        return {"store": self.disk.store}

    @property
    def store(self) -> Store:
        given = self._store_settings()
        return Store(given["store"], endpoint_url=given.get("store_endpoint"))

    @property
    def database_url(self) -> str:
        return self.parts["postgres"].program.url

    def let_go(self) -> None:
        (self.folder / LET_GO).touch()

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        url = self.database_url.replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True, connect_timeout=60) as connection:
            found = connection.execute(statement.encode(), values)
            return found.fetchall() if found.description else []

    def strike(self, act: Act, dice: random.Random) -> None:
        part = self.parts.get(act.target)
        match act.kind:
            case Kind.kill if part:
                part.kill()
            case Kind.orphan if part:
                part.orphan()
            case Kind.child if part:
                part.kill_child()
            case Kind.freeze if part:
                part.signal_all(signal.SIGSTOP)
            case Kind.restart if part:
                part.kill(signal.SIGQUIT)
            case Kind.flush:
                with suppress(redis.RedisError), redis.Redis.from_url(self.parts["valkey"].program.url) as broker:
                    broker.flushall()  # one that is down has forgotten everything anyway
            case Kind.cut:
                self._ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'rlt%%'")
            case Kind.double:
                self._double(dice)
            case Kind.away:
                self.disk.take_away()
            case Kind.full:
                self.disk.fill()

    def heal(self, act: Act) -> None:
        part = self.parts.get(act.target)
        match act.kind:
            case Kind.kill | Kind.orphan | Kind.restart if part:
                part.start()
            case Kind.freeze if part:
                part.signal_all(signal.SIGCONT)
            case Kind.away:
                self.disk.bring_back()
            case Kind.full:
                self.disk.empty()
            case _:
                pass

    def _double(self, dice: random.Random) -> None:
        """The relay sends a third of what it has ever sent once more."""
        again = "UPDATE outbox SET sent_at = NULL WHERE sent_at IS NOT NULL AND mod(id, 3) = %s"
        self._ask(again, dice.randrange(3))

    def _ask(self, statement: str, *values: Any) -> None:
        with suppress(psycopg.OperationalError):  # a database that is down has no connections and doubles nothing
            self.query(statement, *values)

    def ended_by_themselves(self) -> list[str]:
        """Processes that nobody killed and that are gone."""
        return [
            f"{part.name} ended with {code}, killed by nobody"
            for part in self.parts.values()
            if (code := part.died()) is not None
        ]

    def logs(self) -> dict[str, str]:
        return {part.name: part.log.read_text(errors="replace") for part in self.parts.values() if part.log.exists()}

    def command(self, *args: str) -> list[str]:
        """A command of `rlt-jobs` with the settings of this world."""
        program = python("rlt_jobs", *args, name="command", cwd=self.folder, env=self.env)
        return program.argv

    def stop(self) -> None:
        for part in reversed(self.parts.values()):
            part.stop()
        self.disk.remove()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


if sys.platform != "linux":  # /proc, prctl and tmpfs
    raise ImportError(f"chaos needs Linux, this is {os.name}")
