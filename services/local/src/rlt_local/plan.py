"""Which programs a stack consists of, what each is told, and what needs what."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rlt_local import databases
from rlt_local.component import Component
from rlt_local.engine import engine_python
from rlt_local.keys import StackKeys, prepare_keys
from rlt_local.options import VLLM, StackOptions
from rlt_local.ports import HOST, choose, free
from rlt_local.state import ComponentRecord, StackRecord, StateFolder
from rlt_service.probe import file_ready, http_ready

__all__ = ["plan"]

COMMON_ENV = {
    # every process shares the machine with eight others, and small models are slower on more threads
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",  # a log that ends mid-sentence hides why a program died
}

# Settings of the jobs service that suit one machine; variables of these names (RLT_JOBS_…) go first.
ON_ONE_MACHINE = {
    "lease_seconds": "20",  # a worker that is silent for so long is gone
    "heartbeat_seconds": "5",
    "reap_seconds": "2",
    "shard_samples": "128",  # a shard is a worker's: small builds, too, keep all of them busy
    "start_in_flight": "64",  # the servers are near and idle: there is nothing to feel one's way towards
    "flush_seconds": "1",  # somebody watches the bar
}


def plan(
    options: StackOptions, folder: StateFolder, supervisor: tuple[int, float]
) -> tuple[list[Component], StackRecord]:
    """The programs, each needing earlier ones only, and the record to fill in.

    Raises:
        PortTaken, DatabaseError, EngineMissing
    """
    site = Site(options, folder, choose(options.first_port), prepare_keys(folder))
    components = [*site.databases(), *site.models(), *site.servers(), *site.jobs()]
    record = StackRecord(
        pid=supervisor[0],
        pid_created=supervisor[1],
        urls=site.urls,
        key_file=str(folder.key_file),
        options=options.model_dump(mode="json"),
        components={component.name: ComponentRecord(url=component.url) for component in components},
    )
    return components, record


class Site:
    """Everything that the programs of one stack are told about each other."""

    def __init__(self, options: StackOptions, folder: StateFolder, ports: dict[str, int], keys: StackKeys) -> None:
        self._options = options
        self._folder = folder
        self._ports = ports
        self._keys = keys
        self.urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
        tiny = folder.root / "models" / "tiny"
        self._teacher = _model(options.teacher) if options.teacher else str(tiny)
        self._student = _model(options.student) if options.student else self._teacher
        self._postgres = databases.prepare_postgres(folder.root / "postgres")
        self._valkey = databases.prepare_valkey(folder.root / "valkey", *free())

    def databases(self) -> list[Component]:
        return [_database(self._postgres), _database(self._valkey)]

    def models(self) -> list[Component]:
        """Only the tiny models are made here; others are there or fail their server's start."""
        link = self._folder.root / "models" / "tiny"
        return [_task("models", "rlt_local.models", str(link))] if self._options.tiny else []

    def servers(self) -> list[Component]:
        return [self._reward_server(), self._teacher_server()]

    def _reward_server(self) -> Component:
        settings = {"student": self._student, "teacher": self._teacher if self._options.hosted_teacher else ""}
        return self._server("reward", "rlt_reward_server", settings | self._formats())

    def _teacher_server(self) -> Component:
        settings = {
            **self._engine(),
            "model": self._teacher,
            "reward_url": self.urls["reward"],
            "reward_key": self._keys.tokens["teacher"],
        }
        return self._server("teacher", "rlt_teacher_server", settings | self._formats())

    def _engine(self) -> dict[str, str]:
        """What the teacher server is told of its engine; it starts and ends a vLLM of its own itself."""
        if self._options.engine != VLLM:
            return {"engine": self._options.engine}
        return {
            "engine": "launch",
            "engine_python": str(engine_python(self._options.engine_env.absolute())),
            "engine_memory_mib": str(self._options.engine_cache_mib),
        }

    def jobs(self) -> list[Component]:
        """The service's programs share their settings."""
        env = COMMON_ENV | _variables("jobs", self._jobs_settings())
        migrate = _task("migrate", "rlt_jobs", "migrate", needs=(self._postgres.name,), env=env)
        api = Component(
            name="jobs",
            argv=(sys.executable, "-m", "rlt_jobs", "api"),
            env=env,
            needs=(self._valkey.name, "migrate"),
            ready=http_ready(f"{self.urls['jobs']}/readyz"),
            url=self.urls["jobs"],
        )
        return [migrate, api, *(self._background(name, env, api.needs) for name in ("relay", "worker"))]

    def _background(self, name: str, env: dict[str, str], needs: tuple[str, ...]) -> Component:
        beat = self._folder.root / f"{name}.beat"
        return Component(
            name=name,
            argv=(sys.executable, "-m", "rlt_jobs", name),
            env=env | _variables("jobs", {"heartbeat_file": str(beat)}),
            needs=needs,
            ready=file_ready(beat),
            beat=beat,
        )

    def _jobs_settings(self) -> dict[str, str]:
        return {
            **self._common("jobs"),
            "database_url": self._postgres.url,
            "redis_url": self._valkey.url,
            "teacher_url": self.urls["teacher"],
            "teacher_key": self._keys.tokens["jobs"],
            "reward_url": self.urls["reward"],
            "reward_key": self._keys.tokens["jobs"],
            "store": str(self._folder.root / "store"),
            "formats": self._formats()["formats"],
            "concurrency": str(self._options.workers),
            **_unless_told("jobs", ON_ONE_MACHINE),
        }

    def _formats(self) -> dict[str, str]:
        folder = str(self._options.formats.absolute()) if self._options.formats else ""
        return {"format": self._options.prompt_format, "formats": folder}

    def _server(self, name: str, module: str, settings: dict[str, str]) -> Component:
        return Component(
            name=name,
            argv=(sys.executable, "-m", module),
            env=COMMON_ENV | _variables(name, self._common(name) | settings),
            needs=self._model_tasks(),
            ready=http_ready(f"{self.urls[name]}/readyz"),
            url=self.urls[name],
        )

    def _common(self, name: str) -> dict[str, str]:
        return {
            "host": HOST,
            "port": str(self._ports[name]),
            "keys_file": str(self._keys.files[name]),
            "log_format": "console",  # these logs are read by people
        }

    def _model_tasks(self) -> tuple[str, ...]:
        return ("models",) if self._options.tiny else ()


def _model(name: str) -> str:
    """A folder as the programs see it, which run elsewhere; anything else is a name that they have to know."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _variables(server: str, settings: dict[str, str]) -> dict[str, str]:
    """Settings as variables: a command line is for everyone to read, and some of them are keys."""
    return {f"RLT_{server}_{name}".upper(): value for name, value in settings.items()}


def _unless_told(server: str, settings: dict[str, str]) -> dict[str, str]:
    return {name: os.environ.get(f"RLT_{server}_{name}".upper(), value) for name, value in settings.items()}


def _database(program: databases.Program) -> Component:
    async def ready() -> str | None:
        return None if program.ready() else "starting"  # a local socket: it blocks for milliseconds

    return Component(
        name=program.name,
        argv=tuple(databases.bound_to_caller(program)),
        cwd=program.cwd,
        ready=ready,
        stop_signal=program.stop_signal,
        stop_grace=databases.STOP_SECONDS,
        death_signal=program.stop_signal,
    )


def _task(
    name: str, module: str, *arguments: str, needs: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> Component:
    argv = (sys.executable, "-m", module, *arguments)
    return Component(name, argv, env=COMMON_ENV | (env or {}), needs=needs, once=True)
