"""`rlt-jobs worker`: a Celery worker of a few processes, each with one event loop that holds many requests."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from celery import Celery, bootsteps, signals
from celery.exceptions import SoftTimeLimitExceeded

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_jobs import outbox, prefetch
from rlt_jobs.builds.importer import run_import
from rlt_jobs.builds.services import Services
from rlt_jobs.builds.work import work_shard
from rlt_jobs.celery_app import CANARY, make_celery
from rlt_jobs.database import Database
from rlt_jobs.metrics import forget_dead_processes, serve_worker
from rlt_jobs.outbox import Queue
from rlt_jobs.ringing import IMPORT, PUBLISH, SHARD
from rlt_jobs.schema import until_current
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_jobs.store.publish import publish
from rlt_service import logs, telemetry
from rlt_service.secret_files import secret

__all__ = ["make_worker", "run"]

log = logging.getLogger(__name__)

NAME = "rlt-jobs worker"
HEARTBEAT_FILE_SECONDS = 10.0
POOL = 6  # connections a process: control, claims, and flushes and seals of a few shards at once


class Runtime:
    """The event loop, connections and clients of one worker process; made at its first task, after the fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._draining = mmap.mmap(-1, 1)  # shared with the processes forked later
        self._runner: asyncio.Runner | None = None
        self._services: Services | None = None

    def drain(self) -> None:
        """Tell every process of the worker to give back what it holds."""
        self._draining[0] = 1

    def draining(self) -> bool:
        return self._draining[0] == 1

    def run(self, act: Callable[[Services], Awaitable[None]]) -> None:
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            self._runner.run(self._with_services(act))
        except (SoftTimeLimitExceeded, SystemExit, KeyboardInterrupt):
            # a signal in the middle of the loop: nothing of it may go on in the next task
            self._runner, self._services = None, None
            raise

    async def _with_services(self, act: Callable[[Services], Awaitable[None]]) -> None:
        if self._services is None:
            telemetry.start(NAME, version("rlt-jobs"))  # not earlier: its thread does not live through a fork
            self._services = self._open()
        await act(self._services)

    def _open(self) -> Services:
        settings = self._settings
        deadline, patience = settings.request_seconds, settings.patience_seconds
        teacher_key, reward_key = secret(settings, "teacher_key"), secret(settings, "reward_key")
        return Services(
            settings=settings,
            database=Database(settings.database_url, name=NAME, pool=POOL),
            store=Store(settings.store, endpoint_url=settings.store_endpoint),
            teacher=AsyncTeacherClient(settings.teacher_url, key=teacher_key, deadline=deadline, patience=patience),
            reward=AsyncRewardClient(settings.reward_url, key=reward_key, deadline=deadline, patience=patience),
            worker=f"{socket.gethostname()}:{os.getpid()}",
            draining=self.draining,
        )


def make_worker(settings: Settings) -> Celery:
    """The app with its tasks. Nothing is opened before the first task."""
    prefetch.install()
    app = make_celery(settings)
    runtime = Runtime(settings)

    def shard(shard_id: int) -> None:
        runtime.run(lambda services: work_shard(services, shard_id))

    def import_(build_id: int) -> None:
        runtime.run(lambda services: run_import(services, build_id))

    def publish_(build_id: int) -> None:
        runtime.run(lambda services: publish(services, build_id))

    def canary(self: Any, _: int) -> None:
        queue = str(self.request.delivery_info["routing_key"])
        runtime.run(lambda services: _answer_canary(services, queue))

    for name, function in {SHARD: shard, IMPORT: import_, PUBLISH: publish_}.items():
        app.task(function, name=name)
    app.task(canary, name=CANARY, bind=True)
    signals.worker_shutting_down.connect(lambda **_: runtime.drain(), weak=False)
    if settings.heartbeat_file is not None:
        touch = settings.heartbeat_file.touch
        signals.worker_ready.connect(lambda **_: touch(), weak=False)
        app.steps["worker"].add(_heartbeat(settings))
    return app


async def _answer_canary(services: Services, queue: str) -> None:
    async with services.database.begin() as session:
        await outbox.answer_canary(session, queue)


def _heartbeat(settings: Settings) -> type[bootsteps.StartStopStep]:
    """A file whose age tells whether the worker's main loop turns."""

    class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
        requires = {"celery.worker.components:Timer"}  # noqa: RUF012 celery's own way

        def start(self, worker: Any) -> None:
            assert settings.heartbeat_file is not None
            worker.timer.call_repeatedly(HEARTBEAT_FILE_SECONDS, settings.heartbeat_file.touch, priority=10)

    return Heartbeat


async def _wait_for_schema(settings: Settings) -> None:
    """A worker that took work from an older schema would fail at it, five times in a row for good."""
    database = Database(settings.database_url, name="rlt-jobs worker", pool=1)
    try:
        await until_current(database)
    finally:
        await database.close()


def run(settings: Settings) -> None:
    """The process: until SIGTERM, which makes running tasks give their leases back, then ends."""

    def configure(**_: Any) -> None:
        logs.configure(settings.log_level, settings.log_format, service=NAME)

    signals.setup_logging.connect(configure, weak=False)
    signals.worker_process_shutdown.connect(lambda **_: telemetry.stop(), weak=False)
    if settings.metrics_port is not None:
        serve_worker(settings.metrics_port)
        signals.worker_process_init.connect(lambda **_: forget_dead_processes(), weak=False)
    configure()  # Celery asks for it later than this waits
    asyncio.run(_wait_for_schema(settings))
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    queues = ",".join(queue.value for queue in Queue)
    make_worker(settings).worker_main(["worker", "--queues", queues, "--loglevel", settings.log_level, *quiet])
