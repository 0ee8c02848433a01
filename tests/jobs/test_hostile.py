"""Values that are well-formed JSON and that no column, no integer and no iterator can hold: refused, never a 500."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio

from rlt_client.schemas.builds import Build, BuildState, Upload
from rlt_jobs.app import build as build_app
from rlt_jobs.builds.importer import run_import
from rlt_jobs.builds.models import Build as BuildRow
from rlt_jobs.builds.work import Services
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings
from rlt_service.keys import create_token, hash_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = create_token()
API = httpx.AsyncClient


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def api(module_settings: Settings) -> AsyncIterator[API]:
    keys = f"ann build sha256:{hash_token(TOKEN)}"
    app = build_app(module_settings.model_copy(update={"keys": keys, "teacher_url": "http://127.0.0.1:9"}))
    async with (
        app.router.lifespan_context(app),
        API(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://jobs",
            headers={"authorization": f"Bearer {TOKEN}"},
        ) as client,
    ):
        yield client


def body(**changes: Any) -> dict[str, Any]:
    return {"dataset": "set", "problems": [{"question": "Q", "answer": "A"}], **changes}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"format": "a\0"}, "/format"),
        ({"policy": "a\0"}, "/policy"),
        ({"student": "a\0"}, "/student"),
        ({"selection": {"without_flags": ["a\0"]}}, "/selection/without_flags/0"),
        ({"selection": {"context": 2**63}}, "/selection/context"),
        ({"sampling": {"max_tokens": 2**63}}, "/sampling/max_tokens"),
    ],
)
async def test_what_cannot_be_stored_is_refused_by_name(api: API, changes: dict[str, Any], pointer: str) -> None:
    reply = await api.post("/builds", json=body(**changes))
    assert reply.status_code == 422, reply.text
    assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("source", "pointer"),
    [
        ({"columns": {"question": "a\0"}}, "/source/columns/question"),
        ({"limit": 2**63}, "/source/limit"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
async def test_sources_with_such_values_are_refused(
    api: API, source: dict[str, Any], pointer: str, dry_run: bool
) -> None:
    upload = Upload.model_validate((await api.post("/uploads", content=b'{"question": "Q", "answer": "A"}\n')).json())
    asked = {"dataset": "set", "source": {"upload": str(upload.id), **source}}
    reply = await api.post("/builds", json=asked, params={"dry_run": dry_run})
    assert reply.status_code == 422, reply.text
    assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]


@pytest.mark.parametrize("place", ["config", "split", "revision"])
async def test_a_data_set_of_the_hub_with_such_a_name_is_refused(api: API, place: str) -> None:
    hub = {"name": "owner/name", place: "a\0"}
    reply = await api.post("/builds", json={"dataset": "set", "source": {"hub": hub}})
    assert reply.status_code == 422, reply.text
    assert [error["pointer"] for error in reply.json()["errors"]] == [f"/source/hub/{place}"]


async def test_budgets_of_a_retry_that_no_model_has_are_refused(
    api: API, make_build: Callable[..., Awaitable[int]]
) -> None:
    build = await make_build(owner="ann")
    reply = await api.post(f"/builds/{build}/retry", json={"gen_status": ["truncated"], "max_tokens": 2**31})
    assert reply.status_code == 422, reply.text
    assert reply.json()["errors"][0]["pointer"] == "/max_tokens"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/datasets", ["datasets", "\ud800"]),
        ("/datasets/set/versions", ["versions", 2**62]),
        ("/builds/{}/samples", ["index+", 2**62, 0]),
        ("/builds/{}/samples", ["index+", 0, 2**31]),
        ("/builds/{}/samples?sort=length", ["length+", 2**62, 0, 0]),
        ("/builds/{}/samples?sort=reward", ["reward+", float("nan"), 0, 0]),
    ],
)
async def test_a_cursor_that_somebody_made_up_is_no_crash(api: API, path: str, key: list[Any]) -> None:
    build = Build.model_validate((await api.post("/builds", json=body())).json())
    cursor = base64.urlsafe_b64encode(json.dumps(key).encode()).decode()
    reply = await api.get(path.format(build.id), params={"cursor": cursor, **dict(httpx.URL(path).params)})
    assert reply.status_code in (200, 404, 422), reply.text


async def test_a_number_that_no_json_can_hold_spoils_its_row_alone(
    api: API, services: Services, database: Database
) -> None:
    rows = b'{"question": "Q0", "answer": "A", "n": 1e999}\n{"question": "Q1", "answer": "A", "n": 1e308}\n'
    upload = Upload.model_validate((await api.post("/uploads", content=rows)).json())
    build = Build.model_validate(
        (await api.post("/builds", json={"dataset": "set", "source": {"upload": str(upload.id)}})).json()
    )
    await run_import(services, build.id)
    async with database.begin() as session:
        row = await session.get_one(BuildRow, build.id)
    assert (row.state, row.problems, row.bad_rows) == (BuildState.running, 1, 1)
