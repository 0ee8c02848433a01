"""A small database with everything in it that builds leave there, made by the service itself.

`python -m plugins.filled FILE` (in `tests/`) writes one of the newest schema as SQL, for `tests/jobs/schemas/`: what
the next revision will be tried on. It goes by the oldest public means, so that it runs with code of every revision.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.errors import APIError, InvalidRequest
from rlt_client.schemas.common import FieldError
from rlt_client.testing import FakePlatform
from rlt_jobs import app, migrate
from rlt_jobs.builds.importer import run_import
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_jobs.store.publish import publish
from rlt_local.databases import prepare_postgres, start

__all__ = ["fill", "fill_derived", "fill_limits"]

ROWS = [{"question": f"Q{index}", "answer": f"A{index}"} for index in range(5)]
BROKEN = b'{"question": "without an answer"}\n'
DRAINED_AFTER = 3  # samples of a build that stays half done


class _Platform(FakePlatform):
    """Takes its time where it is told to, and cannot take Q1."""

    def __init__(self) -> None:
        super().__init__(refuse=_refuse)
        self.delay = 0.0
        """Seconds of an explanation."""

    def transport(self) -> httpx.AsyncBaseTransport:
        async def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/explain":
                await asyncio.sleep(self.delay)
            return self.handle(request)

        return httpx.MockTransport(answer)


def _refuse(request: httpx.Request) -> APIError | None:
    if request.url.path != "/explain" or json.loads(request.content)["question"] != "Q1":
        return None
    return InvalidRequest(errors=[FieldError(pointer="/question", detail="not this one")])


class _Filling:
    """The API and one worker, in this process."""

    def __init__(self, http: httpx.AsyncClient, services: Services, platform: _Platform) -> None:
        self.http = http
        self.services = services
        self.platform = platform

    async def send(self, method: str, path: str, **options: Any) -> Any:
        reply = await self.http.request(method, path, **options)
        reply.raise_for_status()
        return reply.json() if reply.content and "json" in reply.headers["content-type"] else None

    async def upload(self, body: bytes, **headers: str) -> str:
        found: str = (await self.send("POST", "/uploads", content=body, headers=headers))["id"]
        return found

    async def create(self, dataset: str, **request: Any) -> int:
        source = request if "source" in request else {"problems": ROWS, **request}
        found: int = (await self.send("POST", "/builds", json={"dataset": dataset, "n": 2, **source}))["id"]
        return found

    async def version(self, dataset: str) -> int:
        found: int = (await self.send("GET", f"/datasets/{dataset}/versions"))["items"][0]["id"]
        return found

    async def finish(self, build: int) -> None:
        """Everything that workers do for it."""
        await run_import(self.services, build)
        for shard in await self.ids(f"SELECT id FROM shards WHERE build_id = {build} AND state = 'ready' ORDER BY id"):
            await work_shard(self.services, shard)
        await publish(self.services, build)

    async def ids(self, query: str) -> list[int]:
        async with self.services.database.begin() as session:
            return [row[0] for row in await session.execute(text(query))]


@asynccontextmanager
async def _filling(url: str, folder: Path) -> AsyncIterator[_Filling]:
    settings = Settings(
        database_url=url,
        store=str(folder),
        flush_seconds=0.05,
        heartbeat_seconds=0.1,
        start_in_flight=1,
        max_in_flight=1,
    )
    platform = _Platform()
    database, transport = Database(url, name="filled"), platform.transport()
    api = httpx.ASGITransport(app.build(settings))
    try:
        async with (
            httpx.AsyncClient(transport=api, base_url="http://jobs") as http,
            AsyncTeacherClient("http://teacher", patience=0, transport=transport) as teacher,
            AsyncRewardClient("http://reward", patience=0, transport=transport) as reward,
        ):
            yield _Filling(
                http, Services(settings, database, Store(folder), teacher, reward, worker="filled"), platform
            )
    finally:
        await database.close()


async def fill(url: str, folder: Path) -> None:
    """Builds in every state, done ones with versions, refused rows and failed samples among them."""
    async with _filling(url, folder) as world:
        body = BROKEN + b"\n".join(json.dumps(row).encode() for row in ROWS)
        source = {"source": {"upload": await world.upload(body)}}
        await world.finish(await world.create("uploaded", **source))
        given = [{**row, "explanation": "because"} for row in ROWS]
        await world.finish(await world.create("given", kind="score", problems=given, n=1))
        await _half(world, await world.create("half", n=4))
        await world.send("POST", f"/builds/{await world.create('paused')}/pause")
        await world.send("POST", f"/builds/{await world.create('cancelled')}/cancel")
        await world.create("importing", **source)
        await asyncio.to_thread(_add_key, url, "carol")


def _add_key(url: str, owner: str, *limits: str) -> None:
    argv = [sys.executable, "-m", "rlt_jobs", "keys", "add", owner, "build", *limits]
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "RLT_JOBS_DATABASE_URL": url})


async def _half(world: _Filling, build: int) -> None:
    """A worker that was told to stop: some samples lie in the spool, the rest is missing."""
    (shard,) = await world.ids(f"SELECT id FROM shards WHERE build_id = {build}")
    draining = False
    services = replace(world.services, draining=lambda: draining)
    world.platform.delay = 0.1
    task = asyncio.create_task(work_shard(services, shard))
    while (await world.ids(f"SELECT count(*) FROM samples WHERE build_id = {build}"))[0] < DRAINED_AFTER:  # noqa: ASYNC110 the worker tells nobody
        await asyncio.sleep(0.02)
    draining = True
    await task
    world.platform.delay = 0.0


async def fill_derived(url: str, folder: Path) -> None:
    """What revision 0002 brought: other scores and selections of a build's samples, retries, quotas, deletion.

    Each goes before the builds that `fill` left open.
    """
    from rlt_jobs.quota import quota

    async with _filling(url, folder) as world:
        source = {"upload": await world.upload(b"question,answer\nQ0,A\nQ0,A\n", **{"content-type": "text/csv"})}
        build = await world.create("csv", source=source, priority=9)
        await world.finish(build)
        version = await world.version("csv")
        for path, body in (
            (f"/builds/{build}/rescore", {"spec": "ss_only", "priority": 9}),
            (f"/versions/{version}/rerank", {"selection": {"mode": "all"}}),
        ):
            await world.finish((await world.send("POST", path, json=body))["id"])
        await world.http.get(f"/versions/{version}/export", params={"format": "jsonl", "shape": "raw"})
        await world.send("POST", "/builds/1/retry", json={"max_tokens": 64})
        gone = await world.create("gone", priority=9)
        await world.finish(gone)
        await world.send("DELETE", f"/versions/{await world.version('gone')}")
        await world.send("DELETE", f"/builds/{gone}")
        with redirect_stdout(StringIO()):
            await quota(world.services.settings, ["set", "carol", "open_builds=7"])


def fill_limits(url: str) -> None:
    """What revision 0004 brought: rates of keys."""
    _add_key(url, "dora", "--rate", "100/minute", "--items", "5000/hour")


def main(file: Path) -> None:
    """Write the rows of one such database, as statements of the newest revision."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = prepare_postgres(folder / "postgres", durable=False)
        with start(program, folder / "log", die_with_caller=True) as server:
            server.wait_ready()
            migrate.upgrade(server.url)
            asyncio.run(fill(server.url, folder / "store"))
            if find_spec("rlt_jobs.quota"):
                asyncio.run(fill_derived(server.url, folder / "store"))
            if find_spec("rlt_jobs.key_commands"):
                fill_limits(server.url)
            file.write_text(_dump(server.url))


def _dump(url: str) -> str:
    from rlt_local.databases import _postgres

    options = ["--data-only", "--column-inserts", "--load-via-partition-root", "--exclude-table=alembic_version"]
    argv = [str(_postgres("pg_dump")), *options, url.replace("+psycopg", "")]
    lines = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()
    statements = [
        line for line in lines if line and not line.startswith(("--", "\\", "SET ", "SELECT pg_catalog.set_config"))
    ]
    return "\n".join(statements) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
