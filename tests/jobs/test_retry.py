"""Asking again for what failed: which samples, what stays, and the version that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, select, update

from rlt_client.errors import APIError, Conflict, InvalidRequest, NotFound
from rlt_client.schemas.builds import BuildState, RetryRequest, ShardState
from rlt_client.schemas.common import FieldError, GenStatus, ScoreStatus
from rlt_client.schemas.explain import ExplainRequest
from rlt_client.schemas.reward import RewardItem
from rlt_client.testing.scores import hashed_reward
from rlt_jobs.builds.models import Build, Event, Sample, Score, Shard
from rlt_jobs.builds.repository import totals
from rlt_jobs.builds.retry import Retries, retry
from rlt_jobs.builds.service import BuildService
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.store.check import check
from rlt_jobs.store.models import File, Version
from rlt_jobs.store.publish import publish
from rlt_jobs.store.traces import Traces

pytestmark = pytest.mark.asyncio(loop_scope="module")

MakeBuild = Callable[..., Awaitable[int]]
Ended = Callable[..., Awaitable[int]]


def refuse(path: str, question: str) -> APIError | None:
    """As a teacher does that cannot take the texts of Q1."""
    if (path, question) != ("/explain", "Q1"):
        return None
    return InvalidRequest(errors=[FieldError(pointer="/question", detail="not this one")])


def reward(item: RewardItem) -> float:
    if item.question == "Q4":
        raise ValueError("too_long")
    return hashed_reward(item)


async def run(services: Services, build_id: int) -> None:
    """Every ready shard, and the publishing."""
    ready = select(Shard.id).where(Shard.build_id == build_id, Shard.state == ShardState.ready)
    while True:
        async with services.database.begin() as session:
            shard = await session.scalar(ready.limit(1))
        if shard is None:
            break
        await work_shard(services, shard)
    await publish(services, build_id)


@pytest.fixture
def ended(services: Services, make_build: MakeBuild, platform: Any, monkeypatch: pytest.MonkeyPatch) -> Ended:
    """A published build of 6 × 2 samples whose problem Q1 was refused by the teacher, and Q4 by the reward server."""

    async def make(**options: Any) -> int:
        platform.rules.append(refuse)
        with monkeypatch.context() as patch:
            patch.setattr(platform, "_reward", reward)
            build_id = await make_build(problems=6, n=2, shard_samples=4, **options)
            await run(services, build_id)
        platform.rules.clear()
        return build_id

    return make


async def again(services: Services, build_id: int, **request: Any) -> None:
    async with services.database.begin() as session:
        build = await session.get_one(Build, build_id)
        await retry(session, build, RetryRequest(**request), shard_samples=4)


async def statuses(services: Services, build_id: int) -> Counter[tuple[int, str, int]]:
    async with services.database.begin() as session:
        rows = await session.scalars(select(Sample).where(Sample.build_id == build_id))
        return Counter((row.problem, row.gen_status.value, row.try_) for row in rows)


async def versions(services: Services, build_id: int) -> list[Version]:
    async with services.database.begin() as session:
        query = select(Version).where(Version.build_id == build_id).order_by(Version.id)
        return list((await session.scalars(query)).all())


async def members(services: Services, version: Version) -> dict[int, dict[str, Any]]:
    """The texts of a version's rows by problem, read through its manifest."""
    import pyarrow.parquet as pq

    with services.store.open(version.manifest_uri) as file:
        rows = pq.read_table(file).to_pylist()
    async with services.database.begin() as session:
        uris = {file.id: file.uri for file in await session.scalars(select(File))}
    reader = Traces(services.store)
    keys = {row["problem"]: (uris[row["file_id"]], row["row"]) for row in rows}
    texts = reader.read(keys.values())
    return {problem: texts[key] for problem, key in keys.items()}


async def test_only_what_failed_is_asked_again_and_a_version_follows(
    services: Services, ended: Ended, platform: Any
) -> None:
    build_id = await ended()
    (first,) = await versions(services, build_id)
    assert sorted(await members(services, first)) == [0, 2, 3, 5]
    asked = len(platform.requests)
    await again(services, build_id)
    async with services.database.begin() as session:
        build = await session.get_one(Build, build_id)
        assert (build.state, build.finished_at) == (BuildState.running, None)
    await run(services, build_id)

    explained = [each for each in platform.requests[asked:] if isinstance(each, ExplainRequest)]
    assert Counter(each.question for each in explained) == {"Q1": 2}
    assert (await statuses(services, build_id)) == {
        **{(problem, "complete", 0): 2 for problem in (0, 2, 3, 4, 5)},
        (1, "complete", 1): 2,
    }
    first, second = await versions(services, build_id)
    assert (second.parent_id, second.number, second.rows) == (first.id, first.number + 1, 5)
    assert sorted(await members(services, first)) == [0, 2, 3, 5]  # what was published stays what it was
    texts = await members(services, second)
    assert {problem: row["question"] for problem, row in texts.items()} == {p: f"Q{p}" for p in (0, 1, 2, 3, 5)}
    assert [finding async for finding in check(services.database, services.store)] == []


async def test_counters_stay_sums_of_what_there_is(services: Services, ended: Ended) -> None:
    build_id = await ended(keep_tokens=True)
    await again(services, build_id, score_errors=True)
    await run(services, build_id)
    async with services.database.begin() as session:
        found = (await totals(session, [build_id]))[build_id]
        samples = select(Sample.gen_status, func.count()).where(Sample.build_id == build_id)
        by_status = {s.value: c for s, c in await session.execute(samples.group_by(Sample.gen_status))}
        scores = select(Score.status, func.count()).where(Score.build_id == build_id).group_by(Score.status)
        by_score = dict((await session.execute(scores)).tuples().all())
    assert by_status == {"complete": 12} == {name: count for name, count in found.gen.items() if count}
    assert by_score == {ScoreStatus.scored: 12}
    assert (found.scored, found.score_error) == (12, 0)


async def test_scores_alone_are_made_from_the_stored_texts(services: Services, ended: Ended, platform: Any) -> None:
    build_id = await ended(keep_tokens=True)
    asked = len(platform.requests)
    await again(services, build_id, gen_status=[GenStatus.cancelled], score_errors=True)
    await run(services, build_id)
    assert not [each for each in platform.requests[asked:] if isinstance(each, ExplainRequest)]
    assert (await statuses(services, build_id))[1, "engine_error", 0] == 2
    _, second = await versions(services, build_id)
    assert sorted(await members(services, second)) == [0, 2, 3, 4, 5]
    assert [finding async for finding in check(services.database, services.store)] == []


async def test_scores_that_could_not_be_like_the_others_are_not_promised(services: Services, ended: Ended) -> None:
    """Their KL came from log-probs that went with the texts; made by the hosted teacher, it would be another."""
    with pytest.raises(Conflict, match="keep_tokens"):
        await again(services, await ended(), score_errors=True)


async def test_another_budget_is_the_shards_own(services: Services, ended: Ended, platform: Any) -> None:
    build_id = await ended(sampling={"max_tokens": 100})
    async with services.database.begin() as session:
        cut = (Sample.build_id == build_id, Sample.problem == 3)
        await session.execute(update(Sample).where(*cut).values(gen_status=GenStatus.truncated))
    asked = len(platform.requests)
    await again(services, build_id, gen_status=["truncated"], max_tokens=900)
    await run(services, build_id)
    explained = [each for each in platform.requests[asked:] if isinstance(each, ExplainRequest)]
    assert {(each.question, each.max_tokens) for each in explained} == {("Q3", 900)}
    assert (await statuses(services, build_id))[1, "engine_error", 0] == 2  # not named, not asked


async def test_samples_that_fail_again_can_be_asked_a_third_time(
    services: Services, ended: Ended, platform: Any
) -> None:
    build_id = await ended()
    platform.rules.append(refuse)
    await again(services, build_id)
    await run(services, build_id)
    assert (await statuses(services, build_id))[1, "engine_error", 1] == 2
    platform.rules.clear()
    await again(services, build_id)
    await run(services, build_id)
    assert (await statuses(services, build_id))[1, "complete", 2] == 2
    numbers = [(version.number, version.parent_id) for version in await versions(services, build_id)]
    assert [number for number, _ in numbers] == [1, 2, 3]


async def test_shards_hold_the_failed_samples_alone_and_none_twice(services: Services, make_build: MakeBuild) -> None:
    build_id = await make_build(problems=100, n=3, shard_samples=30)
    async with services.database.begin() as session:
        await session.execute(update(Shard).where(Shard.build_id == build_id).values(state=ShardState.done))
        failed = [p for p in range(100) if p % 7 == 0]
        session.add_all(
            Sample(
                build_id=build_id, problem=p, sample_idx=s, try_=0, request_key=b"",
                gen_status=GenStatus.malformed if p in failed and s < 2 else GenStatus.complete,
            )
            for p in range(100) for s in range(3)
        )  # fmt: skip
        build = await session.get_one(Build, build_id)
        build.state = BuildState.done
    await again(services, build_id, gen_status=["malformed"])
    async with services.database.begin() as session:
        query = select(Shard).where(Shard.build_id == build_id, Shard.try_ == 1).order_by(Shard.lo)
        made = (await session.scalars(query)).all()
    assert [(shard.lo, shard.hi, shard.total) for shard in made] == [
        (0, 8, 4), (14, 22, 4), (28, 36, 4), (42, 50, 4), (56, 64, 4), (70, 78, 4), (84, 92, 4), (98, 99, 2),
    ]  # fmt: skip
    assert {tuple(shard.only or []) for shard in made} == {(GenStatus.malformed,)}


@pytest.mark.parametrize("state", [BuildState.running, BuildState.paused, BuildState.cancelled, BuildState.importing])
async def test_a_build_that_has_not_ended_well_is_not_retried(
    services: Services, ended: Ended, state: BuildState
) -> None:
    build_id = await ended()
    async with services.database.begin() as session:
        await session.execute(update(Build).where(Build.id == build_id).values(state=state))
    with pytest.raises(Conflict, match=str(state)):
        await again(services, build_id)


async def test_nothing_that_matches_is_a_conflict(services: Services, ended: Ended) -> None:
    build_id = await ended()
    with pytest.raises(Conflict, match=r"no sample of build .* is truncated or malformed"):
        await again(services, build_id, gen_status=["truncated", "malformed"])
    async with services.database.begin() as session:
        assert (await session.get_one(Build, build_id)).state is BuildState.done


async def test_a_build_that_another_one_reads_is_left_alone(
    services: Services, ended: Ended, make_build: MakeBuild
) -> None:
    build_id, reader = await ended(), await make_build()
    async with services.database.begin() as session:
        await session.execute(update(Build).where(Build.id == reader).values(of_build_id=build_id))
    with pytest.raises(Conflict, match=f"build {reader} reads the samples"):
        await again(services, build_id)


@pytest.mark.parametrize(("lo", "tries"), [(0, [0, 0, 0]), (4, [0, 0, 0, 1])])
async def test_a_failed_build_gets_its_dead_shards_back(
    services: Services, ended: Ended, platform: Any, lo: int, tries: list[int]
) -> None:
    """Of shard 0 the failed samples of Q1 are, which no second shard asks for beside it."""
    build_id = await ended()
    await kill(services, build_id, lo)
    asked = len(platform.requests)
    await again(services, build_id)
    await run(services, build_id)
    explained = [each for each in platform.requests[asked:] if isinstance(each, ExplainRequest)]
    assert Counter(each.question for each in explained) == {"Q1": 2}
    async with services.database.begin() as session:
        found = select(Shard.try_).where(Shard.build_id == build_id).order_by(Shard.try_)
        assert list(await session.scalars(found)) == tries
        assert (await session.get_one(Build, build_id)).state is BuildState.done
        event = await session.scalar(select(Event.detail).where(Event.build_id == build_id, Event.kind == "retried"))
    assert event == 'asked again: {"gen_status":["engine_error","cancelled"],"score_errors":false}'


async def kill(services: Services, build_id: int, lo: int) -> None:
    async with services.database.begin() as session:
        shard = (Shard.build_id == build_id, Shard.lo == lo)
        await session.execute(update(Shard).where(*shard).values(state=ShardState.dead, barren=5))
        await session.execute(update(Build).where(Build.id == build_id).values(state=BuildState.failed))


async def test_dead_shards_are_enough_to_ask_again(services: Services, make_build: MakeBuild) -> None:
    """No sample has failed: there is none."""
    build_id = await make_build(problems=3, n=2)
    await kill(services, build_id, 0)
    await again(services, build_id)
    await run(services, build_id)
    assert (await statuses(services, build_id)) == {(problem, "complete", 0): 2 for problem in range(3)}
    async with services.database.begin() as session:
        assert (await session.get_one(Build, build_id)).state is BuildState.done


async def test_the_owner_alone_retries(services: Services, ended: Ended) -> None:
    build_id = await ended()
    builds = BuildService(services.settings, services.database, services.store)
    retries = Retries(services.settings, services.database, builds)
    with pytest.raises(NotFound):
        await retries.retry("bob", build_id, RetryRequest())
    assert (await retries.retry("ann", build_id, RetryRequest())).state is BuildState.running


async def test_a_score_that_fails_once_more_stays_an_error(
    services: Services, ended: Ended, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await ended(keep_tokens=True)
    monkeypatch.setattr(platform, "_reward", reward)
    await again(services, build_id, gen_status=["cancelled"], score_errors=True)
    await run(services, build_id)
    async with services.database.begin() as session:
        scores = select(Score.status).where(Score.build_id == build_id, Score.problem == 4)
        assert set(await session.scalars(scores)) == {ScoreStatus.score_error}
        assert (await session.get_one(Build, build_id)).state is BuildState.done
