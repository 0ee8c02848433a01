"""What belongs to one owner is not there for another: every route that names a thing answers 404, and says no more."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import select

from rlt_client.schemas.builds import BuildState
from rlt_client.schemas.common import Scope
from rlt_jobs.app import build as build_app
from rlt_jobs.builds.models import Build, Dataset, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.settings import Settings
from rlt_jobs.store.models import Version
from rlt_jobs.store.publish import publish
from rlt_service.auth import is_public
from rlt_service.keys import Key, create_token, hash_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = {"ann": create_token(), "bob": create_token(), "root": create_token()}
SCOPES = {"ann": Scope.build, "bob": Scope.build, "root": Scope.admin}
BODIES: dict[str, Any] = {
    "/builds/{build_id}/priority": {"priority": 1},
    "/builds/{build_id}/retry": {"gen_status": ["truncated"]},
    "/builds/{build_id}/rescore": {},
    "/versions/{version_id}/rerank": {"selection": {}},
}
"""What routes take, so that nothing but the owner is wrong; a new route that wants a body goes here."""
NOWHERE = {"build_id": str(2**40), "version_id": str(2**40), "upload_id": "00000000-0000-4000-8000-000000000000"}
NOWHERE["name"] = "no-such-set"

Api = httpx.AsyncClient


@pytest.fixture(scope="module")
def app(module_settings: Settings) -> FastAPI:
    keys = ";".join(Key(hash_token(token), owner, frozenset({SCOPES[owner]})).line() for owner, token in TOKENS.items())
    return build_app(module_settings.model_copy(update={"keys": keys}))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def api(app: FastAPI) -> AsyncIterator[Api]:
    async with (
        app.router.lifespan_context(app),
        Api(transport=httpx.ASGITransport(app), base_url="http://jobs") as client,
    ):
        yield client


def naming(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of each route that names a thing."""
    for route in iter_route_contexts(app.routes):
        if not is_public(route) and "{" in str(route.path):
            yield from ((method, str(route.path)) for method in sorted(route.methods or ()))


async def ask(api: Api, who: str, method: str, path: str, names: dict[str, str]) -> httpx.Response:
    address = re.sub(r"{(\w+)}", lambda found: names[found[1]], path)
    headers = {"authorization": f"Bearer {TOKENS[who]}"}
    return await api.request(method, address, json=BODIES.get(path), headers=headers)


@pytest_asyncio.fixture(loop_scope="module")
async def of_ann(api: Api, services: Services, make_build: Any) -> dict[str, str]:
    """A finished build of hers, its version and data set, and an upload, by the names of path parameters."""
    build_id: int = await make_build(owner="ann", problems=2, n=1)
    async with services.database.begin() as session:
        shards = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
    for shard_id in shards:
        await work_shard(services, shard_id)
    await publish(services, build_id)
    async with services.database.begin() as session:
        version = (await session.scalars(select(Version).where(Version.build_id == build_id))).one()
        dataset = await session.get_one(Dataset, version.dataset_id)
    headers = {"authorization": f"Bearer {TOKENS['ann']}"}
    upload = (await api.post("/uploads", content=b'{"question": "Q", "answer": "A"}\n', headers=headers)).json()
    names = {"build_id": build_id, "version_id": version.id, "upload_id": upload["id"], "name": dataset.name}
    return {name: str(value) for name, value in names.items()}


async def test_her_things_are_not_there_for_others_and_told_as_what_never_was(
    api: Api, app: FastAPI, services: Services, of_ann: dict[str, str]
) -> None:
    """An administrator's key is an owner like any other here: it opens routes, not other people's data."""
    asked = list(naming(app))
    assert len(asked) > 15
    for method, path in asked:
        never = await ask(api, "bob", method, path, NOWHERE)
        for who in ("bob", "root"):
            reply = await ask(api, who, method, path, of_ann)
            assert reply.status_code == 404, f"{who}: {method} {path}: {reply.status_code} {reply.text}"
            assert shape(reply, of_ann) == shape(never, NOWHERE), f"{method} {path}"
    async with services.database.begin() as session:
        build = await session.get_one(Build, int(of_ann["build_id"]))
        assert (build.state, build.deleted_at) == (BuildState.done, None)


def shape(reply: httpx.Response, names: dict[str, str]) -> dict[str, Any]:
    """What a refusal says, without the names that were asked for."""
    problem = reply.json() if reply.content else {}
    problem.pop("request_id", None)
    detail = str(problem.get("detail"))
    for name in sorted(names.values(), key=len, reverse=True):
        detail = detail.replace(name, "…")
    return {**problem, "detail": detail}


async def test_for_her_they_are_there(api: Api, app: FastAPI, of_ann: dict[str, str]) -> None:
    """Or the test above would prove nothing. What ends things comes last."""
    for method, path in sorted(naming(app), key=lambda route: (route[0] == "DELETE", "upload" not in route[1])):
        reply = await ask(api, "ann", method, path, of_ann)
        assert reply.status_code in (200, 201, 202, 204, 409), f"{method} {path}: {reply.status_code} {reply.text}"


async def test_others_cannot_build_from_her_upload_and_the_words_are_those_of_none(
    api: Api, of_ann: dict[str, str]
) -> None:
    def body(upload: str) -> dict[str, Any]:
        return {"dataset": "mine", "source": {"upload": upload}}

    headers = {"authorization": f"Bearer {TOKENS['bob']}"}
    for dry_run in (False, True):
        hers, none = [
            await api.post("/builds", json=body(upload), params={"dry_run": dry_run}, headers=headers)
            for upload in (of_ann["upload_id"], NOWHERE["upload_id"])
        ]
        assert (hers.status_code, hers.json()["type"]) == (422, "unknown_upload")
        assert hers.json()["errors"] == none.json()["errors"]


async def test_lists_hold_the_callers_own_alone(api: Api, of_ann: dict[str, str]) -> None:
    for path, key in (("/builds", "id"), ("/datasets", "name"), ("/uploads", "id")):
        for who, there in (("ann", True), ("bob", False), ("root", False)):
            headers = {"authorization": f"Bearer {TOKENS[who]}"}
            found = {str(item[key]) for item in (await api.get(path, headers=headers)).json()["items"]}
            assert bool(found & {*of_ann.values()}) is there, f"{who}: {path}"


async def test_a_data_sets_name_and_an_idempotency_key_are_each_owners_own(api: Api, of_ann: dict[str, str]) -> None:
    """The same words by another owner make another thing, and do not tell that they were taken."""
    body = {"dataset": of_ann["name"], "problems": [{"question": "Q", "answer": "A"}]}
    made = [
        await api.post(
            "/builds", json=body, headers={"authorization": f"Bearer {TOKENS[who]}", "idempotency-key": "once"}
        )
        for who in ("ann", "bob")
    ]
    assert [reply.status_code for reply in made] == [202, 202]
    assert made[0].json()["id"] != made[1].json()["id"]
