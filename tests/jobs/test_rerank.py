"""Other rows from the same samples and scores: a build without work, a version with a parent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from sqlalchemy import select, update

from rlt_client.schemas.builds import BuildKind, BuildState, RerankRequest
from rlt_jobs import app
from rlt_jobs.builds import lifecycle, repository
from rlt_jobs.builds.derived import DerivedBuilds
from rlt_jobs.builds.models import Build, Score, Scorer, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.store.check import check
from rlt_jobs.store.models import Version
from rlt_jobs.store.publish import publish

pytestmark = pytest.mark.asyncio(loop_scope="module")

Published = Callable[..., Awaitable[tuple[int, Version]]]


@pytest.fixture
def published(services: Services, make_build: Any) -> Published:
    """A build that is done, and its version."""

    async def make(**options: Any) -> tuple[int, Version]:
        build_id: int = await make_build(**options)
        async with services.database.begin() as session:
            ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
        for shard_id in ids:
            await work_shard(services, shard_id)
        await publish(services, build_id)
        return build_id, await version_of(services, build_id)

    return make


@pytest_asyncio.fixture(loop_scope="module")
async def api(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app.build(services.settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://jobs") as client:
        yield client


async def version_of(services: Services, build_id: int) -> Version:
    async with services.database.begin() as session:
        return (await session.scalars(select(Version).where(Version.build_id == build_id))).one()


def manifest(services: Services, version: Version) -> list[dict[str, Any]]:
    with services.store.open(version.manifest_uri) as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    assert len(rows) == version.rows
    return rows


async def reranked(services: Services, version: Version, **selection: Any) -> Version:
    derived = DerivedBuilds(services.settings, services.database)
    request = RerankRequest.model_validate({"selection": selection})
    build_id = await derived.rerank("ann", version.id, request, None)
    await publish(services, build_id)
    return await version_of(services, build_id)


async def test_another_selection_is_a_version_of_the_same_samples_with_a_parent(
    services: Services, published: Published, platform: Any
) -> None:
    build_id, first = await published(problems=4, n=3)
    asked = len(platform.requests)
    second = await reranked(services, first, mode="top_k", k=2)
    assert len(platform.requests) == asked
    assert (second.parent_id, second.dataset_id, second.number) == (first.id, first.dataset_id, first.number + 1)
    assert (second.selection["mode"], second.selection["k"], first.selection["mode"]) == ("top_k", 2, "best")
    assert second.counts == first.counts
    rows = manifest(services, second)
    assert [(row["problem"], row["rank"]) for row in rows] == [(p, rank) for p in range(4) for rank in (1, 2)]
    assert {row["build_id"] for row in rows} == {build_id}
    best = [row for row in rows if row["rank"] == 1]
    assert [(row["problem"], row["sample_idx"]) for row in best] == [
        (row["problem"], row["sample_idx"]) for row in manifest(services, first)
    ]
    assert [finding async for finding in check(services.database, services.store)] == []


async def test_other_weights_rank_and_fill_the_reward(services: Services, published: Published) -> None:
    build_id, first = await published(problems=2, n=3)
    async with services.database.begin() as session:
        mine = Score.build_id == build_id
        kl = {"kl_mean": Score.sample_idx * 1.0, "kl_max": 0.0, "ss_mean": -1.0, "ss_min": -2.0}
        await session.execute(update(Score).where(mine).values({**kl, "format": -1.0}))
    second = await reranked(
        services, first, mode="all", weights={"lambda": 0.5, "ss_min_coef": 0.25, "format_coef": 2.0}
    )
    rows = [row for row in manifest(services, second) if row["problem"] == 1]
    # r_ss = −1 + 0.25·(−2); r_kl = sample; format = 2·(−1)
    assert [(row["sample_idx"], row["reward"]) for row in rows] == [(0, -3.5), (1, -4.0), (2, -4.5)]
    assert second.lineage["selection"]["weights"]["lambda"] == 0.5
    assert second.lineage["reward"]["lambda"] == 3.0


async def test_a_version_of_a_version_selects_from_all_samples_again(services: Services, published: Published) -> None:
    _, first = await published(problems=2, n=3)
    narrow = await reranked(services, first, mode="best")
    wide = await reranked(services, narrow, mode="all")
    assert (wide.parent_id, wide.rows, narrow.rows) == (narrow.id, 6, 2)


async def test_a_rerank_is_a_build_that_is_watched_like_any(
    services: Services, published: Published, api: httpx.AsyncClient
) -> None:
    of, first = await published(problems=2, n=2, owner="local")
    headers = {"idempotency-key": f"again-{of}"}
    body = {"selection": {"mode": "all"}}
    replies = [await api.post(f"/versions/{first.id}/rerank", json=body, headers=headers) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [202, 202]
    made = replies[0].json()
    assert (made["kind"], made["state"], made["of_build"]) == (BuildKind.rerank, BuildState.finishing, of)
    assert (made["counts"]["samples"], made["counts"]["missing"]) == (0, 0)
    assert made["id"] == replies[1].json()["id"]
    assert replies[0].headers["location"] == f"/builds/{made['id']}"
    await publish(services, made["id"])
    done = (await api.get(f"/builds/{made['id']}")).json()
    version = (await api.get(f"/versions/{done['version']}")).json()
    assert (done["state"], version["parent"], version["rows"]) == ("done", first.id, 4)
    shown = (await api.get(f"/builds/{made['id']}/samples", params={"texts": True})).json()["items"]
    assert len(shown) == 4
    assert all(row["explanation"] and row["reward"] is not None for row in shown)
    other = await api.post(f"/versions/{first.id}/rerank", json={}, headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("selection", "pointer"),
    [
        ({"weights": {"lambda": 3}}, "/selection/weights/lambda"),
        ({"at_most": {"kl_max": 1}}, "/selection/at_most/kl_max"),
    ],
)
async def test_what_was_not_scored_cannot_be_weighed(
    published: Published, api: httpx.AsyncClient, selection: dict[str, Any], pointer: str
) -> None:
    _, first = await published(problems=1, n=1, owner="local", spec="ss_only")
    refused = await api.post(f"/versions/{first.id}/rerank", json={"selection": selection})
    assert (refused.status_code, refused.json()["type"]) == (422, "component_unavailable")
    assert [error["pointer"] for error in refused.json()["errors"]] == [pointer]


async def test_scores_of_an_older_service_cannot_be_weighed(
    services: Services, published: Published, api: httpx.AsyncClient
) -> None:
    _, first = await published(problems=1, n=1, owner="local", spec={"preset": "rlt", "lambda": 2.5})
    async with services.database.begin() as session:
        await session.execute(update(Scorer).where(Scorer.id == first.scorer_id).values(spec=None))
    weighed = await api.post(f"/versions/{first.id}/rerank", json={"selection": {"weights": {"lambda": 1}}})
    assert (weighed.status_code, weighed.json()["type"]) == (422, "component_unavailable")
    assert (await api.post(f"/versions/{first.id}/rerank", json={"selection": {"mode": "all"}})).status_code == 202


async def test_a_version_of_others_is_not_there(published: Published, api: httpx.AsyncClient) -> None:
    _, first = await published(problems=1, n=1, owner="bob")
    assert (await api.post(f"/versions/{first.id}/rerank", json={})).status_code == 404


async def test_a_rerank_that_selects_nothing_fails_and_can_be_resumed(services: Services, published: Published) -> None:
    _, first = await published(problems=1, n=1)
    derived = DerivedBuilds(services.settings, services.database)
    request = RerankRequest.model_validate({"selection": {"min_reward": 100.0}})
    build_id = await derived.rerank("ann", first.id, request, None)
    await publish(services, build_id)
    async with services.database.begin() as session:
        build = await repository.lock_build(session, build_id, "ann")
        assert build.state is BuildState.failed
        assert build.error is not None
        assert build.error["type"] == "nothing_selected"
        await lifecycle.resume(session, build)
        assert build.state.value == "finishing"


async def test_the_same_question_is_ranked_once_wherever_it_stands(services: Services, published: Published) -> None:
    """Problems 0 and 3 ask the same, so that best-of takes one of their two traces."""
    build_id, first = await published(problems=4, n=1, kind="score")
    async with services.database.begin() as session:
        await session.execute(
            update(Score).where(Score.build_id == build_id).values(reward=-1.0 * Score.problem, unmapped=None)
        )
        found = await repository.problems(session, build_id, [3])
        found[3].first_idx = 0
    second = await reranked(services, first, mode="best")
    assert [(row["problem"], row["rank"]) for row in manifest(services, second)] == [(0, 1), (1, 1), (2, 1)]
    third = await reranked(services, first, mode="all")
    assert [(row["problem"], row["rank"]) for row in manifest(services, third)] == [(0, 1), (1, 1), (2, 1), (3, 2)]


async def test_what_was_deleted_is_not_ranked_again(
    services: Services, published: Published, api: httpx.AsyncClient
) -> None:
    build_id, first = await published(problems=1, n=1, owner="local")
    async with services.database.begin() as session:
        build = await session.get_one(Build, build_id)
        build.deleted_at = build.created_at
    refused = await api.post(f"/versions/{first.id}/rerank", json={})
    assert refused.status_code in (404, 409)
