"""Samples of one build scored again by another: only scores are written, and what is there counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from plugins.shards import hold_back
from sqlalchemy import func, select, update

from rlt_client.errors import APIError, Conflict, InternalError, InvalidRequest
from rlt_client.schemas.builds import BuildKind, BuildState, RerankRequest, RescoreRequest, RetryRequest, ShardState
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_client.schemas.common import Problem as ProblemDetails
from rlt_client.schemas.reward import RewardItem, RewardRequest, SpecRequest
from rlt_jobs import app
from rlt_jobs.builds import lifecycle, repository
from rlt_jobs.builds.derived import DerivedBuilds
from rlt_jobs.builds.models import Build, Event, Sample, Score, Shard
from rlt_jobs.builds.retry import retry
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.store.files import StoreUnavailable
from rlt_jobs.store.models import File, Version
from rlt_jobs.store.publish import publish

pytestmark = pytest.mark.asyncio(loop_scope="module")

Finished = Callable[..., Awaitable[int]]


async def work(services: Services, build_id: int) -> None:
    """Everything that workers do for a build."""
    async with services.database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id).order_by(Shard.id))).all()
    for shard_id in ids:
        await work_shard(services, shard_id)


@pytest.fixture
def finished(services: Services, make_build: Any) -> Finished:
    """A build that is done."""

    async def make(**options: Any) -> int:
        build_id: int = await make_build(**options)
        await work(services, build_id)
        await publish(services, build_id)
        return build_id

    return make


@pytest_asyncio.fixture(loop_scope="module")
async def api(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app.build(services.settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://jobs") as client:
        yield client


async def rescore(services: Services, build_id: int, *, owner: str = "ann", **request: Any) -> int:
    derived = DerivedBuilds(services.settings, services.database)
    return await derived.rescore(owner, build_id, RescoreRequest.model_validate(request), None)


async def get(services: Services, build_id: int) -> Build:
    async with services.database.begin() as session:
        return await session.get_one(Build, build_id)


async def rewards(services: Services, data: int, build_id: int) -> dict[tuple[int, int], float | None]:
    """By the scorer of `build_id`."""
    scorer = (await get(services, build_id)).scorer_id
    async with services.database.begin() as session:
        query = select(Score.problem, Score.sample_idx, Score.reward)
        rows = await session.execute(query.where(Score.build_id == data, Score.scorer_id == scorer))
        return {(row[0], row[1]): row[2] for row in rows}


async def counted(services: Services, build_id: int) -> tuple[int, int, int, int]:
    """(total, handled, scored, score_error) of its shards."""
    async with services.database.begin() as session:
        found = (await repository.totals(session, [build_id]))[build_id]
    return found.total, found.gen["complete"], found.scored, found.score_error


def scored_items(platform: Any) -> list[RewardItem]:
    return [item for request in platform.requests if isinstance(request, RewardRequest) for item in request.items]


def another_reward(platform: Any, monkeypatch: pytest.MonkeyPatch, reward: Callable[[RewardItem], float]) -> None:
    """From now on the reward server computes this."""
    platform.requests.clear()
    monkeypatch.setattr(platform, "_reward", reward)


async def test_every_complete_sample_gets_another_score_and_the_best_become_a_version(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await finished(problems=5, n=3)
    before = await rewards(services, data, data)
    another_reward(platform, monkeypatch, lambda item: -float(len(item.completion or "")))
    build_id = await rescore(services, data, spec={"preset": "rlt", "lambda": 1})
    assert (await get(services, build_id)).state is BuildState.running
    await work(services, build_id)
    assert await counted(services, build_id) == (15, 15, 15, 0)
    assert (await get(services, build_id)).state is BuildState.finishing
    await publish(services, build_id)

    found = await get(services, build_id)
    assert (found.state, found.kind, found.of_build_id) == (BuildState.done, BuildKind.rescore, data)
    assert all(isinstance(request, RewardRequest) for request in platform.requests)
    assert len(scored_items(platform)) == 15
    after = await rewards(services, data, build_id)
    assert after.keys() == before.keys()
    assert after != before
    assert await rewards(services, data, data) == before
    async with services.database.begin() as session:
        both = select(Version).where(Version.build_id.in_([data, build_id])).order_by(Version.id)
        parent, child = (await session.scalars(both)).all()
        of_it = select(func.count()).select_from(File).where(File.build_id == build_id)
        assert await session.scalar(of_it) == 0
    assert (child.parent_id, child.rows, child.number) == (parent.id, 5, parent.number + 1)
    assert child.scorer_id == found.scorer_id != parent.scorer_id
    assert (child.lineage["reward"]["lambda"], parent.lineage["reward"]["lambda"]) == (1.0, 3.0)


async def test_the_same_scorer_finds_everything_done(services: Services, finished: Finished, platform: Any) -> None:
    """One sample tells who scores; nothing else is asked, and the counters are those of what is there."""
    data = await finished(problems=4, n=2, keep_tokens=True)
    platform.requests.clear()
    build_id = await rescore(services, data)
    await work(services, build_id)
    assert len(scored_items(platform)) == 1
    assert await counted(services, build_id) == (8, 8, 8, 0)
    await publish(services, build_id)
    first, again = await get(services, data), await get(services, build_id)
    assert (again.state, again.scorer_id) == (BuildState.done, first.scorer_id)


async def test_only_complete_samples_are_scored(services: Services, finished: Finished, platform: Any) -> None:
    data = await finished(problems=3, n=2)
    async with services.database.begin() as session:
        cut = (Sample.build_id == data, Sample.problem == 1)
        await session.execute(update(Sample).where(*cut).values(gen_status=GenStatus.truncated))
    build_id = await rescore(services, data, spec="ss_only")
    await work(services, build_id)
    assert await counted(services, build_id) == (4, 4, 4, 0)
    assert {problem for problem, _ in await rewards(services, data, build_id)} == {0, 2}


async def test_kept_tokens_go_along_and_give_the_kl(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await finished(problems=1, n=2, keep_tokens=True, sampling={"temperature": 0.5})
    sent = {item.completion: item for item in scored_items(platform)}
    another_reward(platform, monkeypatch, lambda _: -1.0)
    build_id = await rescore(services, data, spec={"preset": "rlt", "lambda": 2})
    await work(services, build_id)
    for item in scored_items(platform):
        first = sent[item.completion].teacher
        assert item.teacher is not None
        assert first is not None
        assert item.teacher.token_ids == first.token_ids
        assert item.teacher.logprobs == pytest.approx(first.logprobs)
        assert (item.teacher.temperature, item.teacher.revision) == (0.5, "sha256:0")
    assert len(scored_items(platform)) == 2


async def test_in_another_format_the_explanation_is_scored_not_what_was_emitted(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await finished(problems=1, n=1, keep_tokens=True)
    another_reward(platform, monkeypatch, lambda _: -1.0)
    build_id = await rescore(services, data, format="plain", spec={"preset": "rlt", "lambda": 2})
    await work(services, build_id)
    [item] = scored_items(platform)
    assert item.explanation is not None
    assert (item.completion, item.teacher) == (None, None)


async def test_traces_that_were_given_are_scored_again(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await finished(problems=2, n=1, kind="score")
    another_reward(platform, monkeypatch, lambda _: -1.0)
    build_id = await rescore(services, data, spec=SpecRequest(lambda_=2))
    await work(services, build_id)
    assert [item.explanation for item in scored_items(platform)] == ["because"] * 2


async def test_a_lease_that_ends_early_leaves_what_it_scored(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await finished(problems=6, n=1)
    calls = 0

    def reward(item: RewardItem) -> float:
        nonlocal calls
        calls += 1
        return -float(calls)

    another_reward(platform, monkeypatch, reward)
    build_id = await rescore(services, data, spec={"preset": "rlt", "lambda": 2})
    with monkeypatch.context() as patched:
        patched.setattr("rlt_jobs.builds.running.seal", _broken)
        await work(services, build_id)
    async with services.database.begin() as session:
        shard = (await session.scalars(select(Shard).where(Shard.build_id == build_id))).one()
        assert shard.state is ShardState.ready
        shard.retry_at = None
    first = await rewards(services, data, build_id)
    assert calls == len(first) == 6
    await work(services, build_id)
    assert await rewards(services, data, build_id) == first
    assert calls == 6
    assert await counted(services, build_id) == (6, 6, 6, 0)


async def _broken(*_: Any) -> None:
    raise OSError("no space left")


async def test_a_store_that_is_away_is_waited_for_and_kills_no_shard(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await finished(problems=2, n=1)
    read, refusals = services.store.open, 0

    def away(uri: str) -> Any:
        nonlocal refusals
        refusals += 1
        if refusals > 3:
            return read(uri)
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr("rlt_jobs.builds.running.DATABASE_PAUSE", 0.01)
    another_reward(platform, monkeypatch, lambda _: -5.0)
    build_id = await rescore(services, data, spec={"preset": "rlt", "lambda": 2})
    monkeypatch.setattr(services.store, "open", away)
    await work(services, build_id)
    assert await counted(services, build_id) == (2, 2, 2, 0)


async def test_samples_that_are_being_made_again_are_not_read(services: Services, finished: Finished) -> None:
    data = await finished(problems=2, n=1)
    build_id = await rescore(services, data, spec={"preset": "rlt", "lambda": 2})
    async with services.database.begin() as session:
        await lifecycle.fail(session, build_id, ProblemDetails(type="of_its_own", title="Failed"))
        (await session.get_one(Build, data)).state = BuildState.running
    version = (await versions_of(services, data))[0]
    derived = DerivedBuilds(services.settings, services.database)
    with pytest.raises(Conflict, match=f"build {data}, whose samples this one reads, is running"):
        await ask_again(services, build_id)
    with pytest.raises(Conflict, match=f"build {data}, whose samples this one reads, is running"):
        async with services.database.begin() as session:
            await lifecycle.resume(session, await repository.lock_build(session, build_id, "ann"))
    with pytest.raises(Conflict, match=f"build {data}, whose samples this one reads, is running"):
        await derived.rerank("ann", version, RerankRequest.model_validate({"selection": {}}), None)


async def versions_of(services: Services, build_id: int) -> list[int]:
    async with services.database.begin() as session:
        return list(await session.scalars(select(Version.id).where(Version.build_id == build_id)))


async def test_a_score_error_is_counted_and_an_error_alone_is_replaced(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await finished(problems=3, n=1)

    def reward(item: RewardItem) -> float:
        if item.question == "Q1":
            raise ValueError("out_of_memory")
        return -1.0

    another_reward(platform, monkeypatch, reward)
    build_id = await rescore(services, data, spec={"preset": "rlt", "lambda": 2})
    await work(services, build_id)
    assert await counted(services, build_id) == (3, 3, 2, 1)
    await publish(services, build_id)
    another_reward(platform, monkeypatch, lambda _: -5.0)
    await ask_again(services, build_id)
    await work(services, build_id)
    assert [item.question for item in scored_items(platform)] == ["Q1"]
    assert await rewards(services, data, build_id) == {(0, 0): -1.0, (1, 0): -5.0, (2, 0): -1.0}
    assert await counted(services, build_id) == (3, 3, 3, 0)


@pytest.mark.parametrize("kind", [BuildKind.rescore, BuildKind.score])
async def test_what_was_refused_before_there_was_any_score_is_told_and_scored_again(
    services: Services, finished: Finished, platform: Any, make_build: Any, kind: BuildKind
) -> None:
    """Nothing told who refused it, so it has no score that could say why."""

    def refuse(path: str, question: str) -> APIError | None:
        return InternalError("broken") if (path, question) == ("/reward", "Q0") else None

    if kind is BuildKind.rescore:
        data = await finished(problems=3, n=1)
        platform.rules.append(refuse)
        build_id = await rescore(services, data, spec={"preset": "rlt", "lambda": 2})
    else:
        platform.rules.append(refuse)
        data = build_id = await make_build(problems=3, n=1, kind="score", shard_samples=1)
        await hold_back(services.database, build_id, datetime.now(UTC) + timedelta(hours=1), lo=1)
        await work(services, build_id)
        await hold_back(services.database, build_id, None)
    await work(services, build_id)
    await publish(services, build_id)
    assert (await rewards(services, data, build_id)).keys() == {(1, 0), (2, 0)}
    async with services.database.begin() as session:
        told = select(Event.detail).where(Event.build_id == build_id, Event.kind == "unscored")
        assert "internal_error" in (await session.scalars(told)).one()

    platform.rules.clear()
    platform.requests.clear()
    await ask_again(services, build_id)
    await work(services, build_id)
    await publish(services, build_id)
    assert [item.question for item in scored_items(platform)] == ["Q0"]
    assert (await rewards(services, data, build_id)).keys() == {(0, 0), (1, 0), (2, 0)}
    assert (await counted(services, build_id))[1:] == (3, 3, 0)


async def ask_again(services: Services, build_id: int) -> None:
    async with services.database.begin() as session:
        build = await repository.lock_build(session, build_id, "ann")
        await retry(session, build, RetryRequest(score_errors=True), shard_samples=256)


async def test_what_a_builds_own_scorer_failed_at_is_scored_again_and_nothing_is_generated(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reward(item: RewardItem) -> float:
        if item.question == "Q1":
            raise ValueError("out_of_memory")
        return -1.0

    another_reward(platform, monkeypatch, reward)
    build_id = await finished(problems=3, n=1, keep_tokens=True)
    another_reward(platform, monkeypatch, lambda _: -5.0)
    await ask_again(services, build_id)
    await work(services, build_id)
    await publish(services, build_id)
    assert [item.question for item in scored_items(platform)] == ["Q1"]
    assert all(isinstance(request, RewardRequest) for request in platform.requests)
    assert await rewards(services, build_id, build_id) == {(0, 0): -1.0, (1, 0): -5.0, (2, 0): -1.0}
    assert (await counted(services, build_id))[1:] == (3, 3, 0)
    async with services.database.begin() as session:
        both = select(Version.parent_id, Version.rows, Version.id).where(Version.build_id == build_id)
        first, second = (await session.execute(both.order_by(Version.id))).all()
    assert (first.rows, second.rows, second.parent_id) == (2, 3, first.id)


async def test_without_any_kl_the_version_says_why_there_is_none(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = await finished(problems=2, n=1)

    def reward(_: RewardItem) -> float:
        raise ValueError("kl_unavailable")

    another_reward(platform, monkeypatch, reward)
    build_id = await rescore(services, data, spec={"preset": "rlt", "lambda": 2})
    await work(services, build_id)
    await publish(services, build_id)
    failed = await get(services, build_id)
    assert failed.state is BuildState.failed
    assert failed.error is not None
    assert failed.error["type"] == "nothing_selected"
    assert "2 could not be scored: kl_unavailable" in failed.error["detail"]
    async with services.database.begin() as session:
        states = select(Score.status).where(Score.build_id == data, Score.scorer_id == failed.scorer_id)
        assert set(await session.scalars(states)) == {ScoreStatus.score_error}


async def test_a_build_whose_rewards_failed_can_be_scored_again(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no version, so that the one of the new scores has no parent."""

    def reward(_: RewardItem) -> float:
        raise ValueError("kl_unavailable")

    another_reward(platform, monkeypatch, reward)
    data = await finished(problems=2, n=1)
    assert (await get(services, data)).state is BuildState.failed
    another_reward(platform, monkeypatch, lambda _: -1.0)
    build_id = await rescore(services, data, spec="ss_only")
    await work(services, build_id)
    await publish(services, build_id)
    async with services.database.begin() as session:
        version = (await session.scalars(select(Version).where(Version.build_id == build_id))).one()
    assert (version.rows, version.parent_id) == (2, None)


async def test_a_build_that_is_not_done_is_refused(services: Services, make_build: Any) -> None:
    running = await make_build(problems=1, n=1)
    with pytest.raises(Conflict) as refused:
        await rescore(services, running)
    assert refused.value.type == "wrong_state"
    async with services.database.begin() as session:
        await session.execute(update(Build).where(Build.id == running).values(state=BuildState.cancelled))
    with pytest.raises(Conflict):
        await rescore(services, running)


async def test_a_build_without_a_complete_sample_is_refused(services: Services, finished: Finished) -> None:
    data = await finished(problems=1, n=1)
    async with services.database.begin() as session:
        await session.execute(update(Sample).where(Sample.build_id == data).values(gen_status=GenStatus.malformed))
    with pytest.raises(Conflict) as refused:
        await rescore(services, data)
    assert refused.value.type == "nothing_to_score"


async def test_a_selection_that_its_reward_cannot_give_is_refused(services: Services, finished: Finished) -> None:
    data = await finished(problems=1, n=1)
    with pytest.raises(InvalidRequest):
        await rescore(services, data, spec="ss_only", selection={"at_most": {"kl_max": 1}})


async def test_it_is_asked_for_watched_and_browsed_like_any_build(
    services: Services, finished: Finished, platform: Any, monkeypatch: pytest.MonkeyPatch, api: httpx.AsyncClient
) -> None:
    data = await finished(problems=2, n=2, owner="local")
    another_reward(platform, monkeypatch, lambda _: -0.25)
    headers = {"idempotency-key": f"again-{data}"}
    body = {"spec": {"preset": "rlt", "lambda": 2}, "selection": {"mode": "all"}, "priority": 3}
    made, again = [(await api.post(f"/builds/{data}/rescore", json=body, headers=headers)).json() for _ in range(2)]
    assert made["id"] == again["id"]
    assert (made["kind"], made["state"], made["of_build"], made["priority"]) == ("rescore", "running", data, 3)
    assert (made["counts"]["samples"], made["counts"]["missing"]) == (4, 4)
    await work(services, made["id"])
    await publish(services, made["id"])
    done = (await api.get(f"/builds/{made['id']}")).json()
    assert (done["state"], done["counts"]["missing"], done["counts"]["score"]["scored"]) == ("done", 0, 4)
    shown = (await api.get(f"/builds/{made['id']}/samples", params={"sort": "reward", "texts": True})).json()["items"]
    assert [row["reward"] for row in shown] == [-0.25] * 4
    assert all(row["explanation"] for row in shown)
    version = (await api.get(f"/versions/{done['version']}")).json()
    assert (version["rows"], version["build"]) == (4, made["id"])
