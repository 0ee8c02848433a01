"""Every line says what it is about: request, build, shard, owner, trace; those of workers and relays too."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update

from rlt_client.errors import Unavailable
from rlt_jobs import leases
from rlt_jobs.app import build as build_app
from rlt_jobs.builds.importer import run_import
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.database import Database
from rlt_jobs.leases import reap
from rlt_jobs.settings import Settings
from rlt_jobs.store.publish import publish
from rlt_service import logs

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def lines() -> Any:
    """The lines so far, as objects."""
    stream = io.StringIO()
    logs.configure("debug", "json", service="rlt-jobs worker", stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def about(lines: Any, event: str) -> list[dict[str, Any]]:
    return [line for line in lines() if line["event"].startswith(event)]


async def test_a_shard(services: Services, make_build: Any, lines: Any) -> None:
    build_id = await make_build(problems=2, n=1, owner="bob")
    await work_shard(services, 0)
    (done,) = about(lines, "shard done")
    assert done.items() >= {"build_id": build_id, "owner": "bob", "service": "rlt-jobs worker", "level": "info"}.items()
    assert done["shard_id"] > 0
    assert not about(lines, "version published")
    await publish(services, build_id)
    (published,) = about(lines, "version published")
    assert (published["build_id"], published["owner"]) == (build_id, "bob")


async def test_a_shard_that_fails(
    services: Services, platform: Any, make_build: Any, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_pause", lambda: timedelta(hours=1))  # one lease, however slow the shift is
    build_id = await make_build(problems=1, n=1)
    platform.rules.append(lambda path, _: Unavailable("down") if path == "/explain" else None)
    await work_shard(services, 0)
    (back,) = about(lines, "shard given back")
    assert (back["build_id"], back["owner"]) == (build_id, "ann")
    assert "shard_id" in back


async def test_a_lease_that_is_taken_back(services: Services, make_build: Any, claim: Any, lines: Any) -> None:
    build_id = await make_build(problems=1, n=1)
    lease = await claim(0)
    async with services.database.begin() as session:
        await session.execute(
            update(Shard).where(Shard.id == lease.shard_id).values(lease_until=text("now() - '1 s'::interval"))
        )
        await reap(session, max_barren=5)
    (ended,) = about(lines, "lease ended")
    assert (ended["build_id"], ended["shard_id"]) == (build_id, lease.shard_id)


async def test_an_import(services: Services, database: Database, make_build: Any, lines: Any) -> None:
    build_id = await make_build()
    async with database.begin() as session:
        gone = {"source": {"path": "/nowhere/at-all.jsonl"}}
        spec = {**(await session.get_one(Build, build_id)).spec, **gone}
        await session.execute(update(Build).where(Build.id == build_id).values(state="importing", spec=spec))
    await run_import(services, build_id)
    (told,) = about(lines, "nothing is imported")
    assert (told["build_id"], told["owner"]) == (build_id, "ann")


async def test_a_request(settings: Settings, make_build: Any, lines: Any) -> None:
    build_id = await make_build(owner="local")
    app = build_app(settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        await http.get(f"/builds/{build_id}", headers={"x-request-id": "one"})
        await http.get("/builds/9" + "9" * 30, headers={"x-request-id": "two"})
        body = {"dataset": "set", "problems": [{"question": "Q", "answer": "A"}]}
        made = await http.post("/builds", json=body, headers={"x-request-id": "three"})
    requests = {line["request_id"]: line for line in about(lines, "request")}
    assert (requests["one"]["build_id"], requests["one"]["owner"]) == (build_id, "local")
    assert "build_id" not in requests["two"]
    assert requests["three"]["build_id"] == made.json()["id"]
