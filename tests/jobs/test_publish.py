"""Publishing: selection, compaction, and exactly one version however often the publisher is killed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from sqlalchemy import func, select, text, update

from rlt_client.errors import InternalError
from rlt_client.schemas.builds import BuildState
from rlt_client.schemas.reward import RewardItem
from rlt_jobs.builds import lifecycle
from rlt_jobs.builds.models import Build, Event, Sample, Score, Shard
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.leases import claim_build, reap
from rlt_jobs.store import publish as publishing
from rlt_jobs.store.check import check
from rlt_jobs.store.files import Stored
from rlt_jobs.store.models import File, Version, VersionFile
from rlt_jobs.store.publish import publish

pytestmark = pytest.mark.asyncio(loop_scope="module")


Worked = Callable[..., Awaitable[int]]


@pytest_asyncio.fixture(loop_scope="module")
async def worked(services: Services, make_build: Any) -> Worked:
    """A build whose samples are all made, waiting to be published.

    What earlier tests built is deleted: a check of everything looks at the test's own builds.
    """
    async with services.database.begin() as session:
        await session.execute(update(Build).where(Build.deleted_at.is_(None)).values(deleted_at=func.now()))

    async def make(**options: Any) -> int:
        build_id: int = await make_build(**options)
        async with services.database.begin() as session:
            ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
        for shard_id in ids:
            await work_shard(services, shard_id)
        return build_id

    return make


async def build(services: Services, build_id: int) -> Build:
    async with services.database.begin() as session:
        return await session.get_one(Build, build_id)


async def version_of(services: Services, build_id: int) -> Version:
    async with services.database.begin() as session:
        return (await session.scalars(select(Version).where(Version.build_id == build_id))).one()


async def manifest(services: Services, build_id: int) -> list[dict[str, Any]]:
    version = await version_of(services, build_id)
    services.store.verify(Stored(version.manifest_uri, version.manifest_bytes, version.manifest_sha256))
    rows: list[dict[str, Any]] = pq.read_table(services.store.open(version.manifest_uri)).to_pylist()
    assert len(rows) == version.rows
    return rows


async def rewards(services: Services, build_id: int) -> dict[tuple[int, int], float]:
    async with services.database.begin() as session:
        rows = await session.execute(
            select(Score.problem, Score.sample_idx, Score.reward).where(Score.build_id == build_id)
        )
        return {(problem, idx): reward for problem, idx, reward in rows if reward is not None}


async def whole(services: Services) -> list[str]:
    return [finding async for finding in check(services.database, services.store)]


async def test_the_best_of_each_problem_is_published(services: Services, worked: Worked) -> None:
    build_id = await worked(problems=6, n=4)
    await publish(services, build_id)
    assert (await build(services, build_id)).state is BuildState.done
    by_sample = await rewards(services, build_id)
    for row in await manifest(services, build_id):
        best = max(reward for (problem, _), reward in by_sample.items() if problem == row["problem"])
        assert (row["rank"], row["reward"]) == (1, best)
        assert by_sample[row["problem"], row["sample_idx"]] == best
    assert [row["problem"] for row in await manifest(services, build_id)] == list(range(6))
    assert await whole(services) == []


@pytest.mark.parametrize(
    ("selection", "rows"), [({"mode": "all"}, 24), ({"mode": "top_k", "k": 3}, 18), ({"mode": "top_k", "k": 9}, 24)]
)
async def test_more_than_one_a_problem(
    services: Services, worked: Worked, selection: dict[str, Any], rows: int
) -> None:
    build_id = await worked(problems=6, n=4, selection=selection)
    await publish(services, build_id)
    found = await manifest(services, build_id)
    assert len(found) == rows
    for problem in range(6):
        ranked = [(row["rank"], row["reward"]) for row in found if row["problem"] == problem]
        assert ranked == [(i + 1, reward) for i, (_, reward) in enumerate(sorted(ranked, key=lambda r: -r[1]))]


async def test_equal_rewards_are_ranked_by_sample(
    services: Services, worked: Worked, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "_reward", lambda _: -2.0)
    build_id = await worked(problems=2, n=3, selection={"mode": "all"})
    await publish(services, build_id)
    assert [(row["rank"], row["sample_idx"]) for row in await manifest(services, build_id)] == [
        (1, 0),
        (2, 1),
        (3, 2),
    ] * 2


async def test_what_is_below_the_threshold_or_has_no_reward_is_left_out(
    services: Services, worked: Worked, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reward(item: RewardItem) -> float:
        if item.question == "Q0":
            raise ValueError("kl_unavailable")
        return {"Q1": -1.0, "Q2": -3.0}[item.question]

    monkeypatch.setattr(platform, "_reward", reward)
    build_id = await worked(problems=3, n=1, selection={"mode": "best", "min_reward": -2.0})
    await publish(services, build_id)
    assert [row["problem"] for row in await manifest(services, build_id)] == [1]
    version = await version_of(services, build_id)
    assert (version.counts["complete"], version.counts["scored"], version.counts["score_error"]) == (3, 2, 1)


async def test_nothing_to_select_fails_the_build_and_keeps_the_samples(services: Services, worked: Worked) -> None:
    build_id = await worked(problems=2, n=1, selection={"mode": "best", "min_reward": 100.0})
    await publish(services, build_id)
    failed = await build(services, build_id)
    assert failed.state is BuildState.failed
    assert failed.error is not None
    assert failed.error["type"] == "nothing_selected"
    assert len(await rewards(services, build_id)) == 2


async def test_a_build_that_was_refused_every_score_fails_with_the_reason(
    services: Services, worked: Worked, platform: Any
) -> None:
    platform.rules.append(lambda path, _: InternalError("broken") if path == "/reward" else None)
    build_id = await worked(problems=3, n=1, shard_samples=1)
    await publish(services, build_id)
    failed = await build(services, build_id)
    assert failed.error is not None
    assert failed.error["type"] == "nothing_selected"
    assert failed.error["detail"].endswith("refused before there was any score, so counted as skipped: internal_error")
    async with services.database.begin() as session:
        told = select(Event).where(Event.build_id == build_id, Event.kind == "unscored")
        assert len((await session.scalars(told)).all()) == 1  # not one a flush


async def test_files_become_few_sorted_and_self_contained(
    services: Services, worked: Worked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CHUNK", 8)
    services.settings.compact_bytes = 6_000
    build_id = await worked(problems=20, n=2, shard_samples=6)
    await publish(services, build_id)
    async with services.database.begin() as session:
        files = (
            await session.scalars(
                select(File).where(File.build_id == build_id, File.kind == "compact").order_by(File.lo)
            )
        ).all()
        linked = (await session.scalars(select(VersionFile.file_id).order_by(VersionFile.file_id))).all()
    assert len(files) > 1
    assert {file.id for file in files} <= set(linked)
    assert [file.lo for file in files] == [0, *(file.hi for file in files[:-1])]
    assert files[-1].hi == 20
    rows = [row for file in files for row in pq.read_table(services.store.open(file.uri)).to_pylist()]
    assert [(row["problem"], row["sample_idx"]) for row in rows] == [(p, s) for p in range(20) for s in range(2)]
    assert all((row["question"], row["answer"]) == (f"Q{row['problem']}", f"A{row['problem']}") for row in rows)
    assert await whole(services) == []


async def test_a_version_tells_where_it_comes_from(services: Services, worked: Worked) -> None:
    build_id = await worked(problems=1, n=1, seed=5)
    await publish(services, build_id)
    version = await version_of(services, build_id)
    lineage = version.lineage
    assert (lineage["seed"], lineage["policy_revisions"]) == (5, ["sha256:0"])
    assert lineage["format"]["name"] == "stratos"
    assert lineage["format"]["student"]["close"]
    assert lineage["code"]["rlt-jobs"]
    assert lineage["build"]["n"] == 1


async def test_versions_of_a_data_set_are_numbered(services: Services, worked: Worked) -> None:
    first, second = await worked(problems=1, n=1), await worked(problems=1, n=1)
    async with services.database.begin() as session:
        dataset = await session.scalar(select(Build.dataset_id).where(Build.id == first))
        await session.execute(update(Build).where(Build.id == second).values(dataset_id=dataset))
    await publish(services, second)
    await publish(services, first)
    assert ((await version_of(services, second)).number, (await version_of(services, first)).number) == (1, 2)


@pytest.mark.parametrize(
    ("moment", "step"),
    [("before", "_traces"), ("before", "_commit"), ("after", "_commit"), ("after", "_select"), ("after", "_record")],
)
async def test_a_publisher_killed_at_any_moment_is_followed_by_one_that_publishes_once(
    services: Services, worked: Worked, monkeypatch: pytest.MonkeyPatch, step: str, moment: str
) -> None:
    monkeypatch.setattr(publishing, "CHUNK", 4)
    services.settings.compact_bytes = 2**16
    build_id = await worked(problems=6, n=1, selection={"mode": "all"})
    original = getattr(publishing._Publisher, step)
    calls = 0

    async def killed(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if moment == "before" and calls == 1:
            raise KeyError("SIGKILL")
        result = await original(self, *args)
        if moment == "after" and calls == 1:
            raise KeyError("SIGKILL")
        return result

    with monkeypatch.context() as patched:
        patched.setattr(publishing._Publisher, step, killed)
        with pytest.raises(KeyError):
            await publish(services, build_id)
    async with services.database.begin() as session:
        past = text("now() - interval '1 second'")
        await session.execute(
            update(Build).where(Build.id == build_id, Build.lease_until.is_not(None)).values(lease_until=past)
        )
        await reap(session, max_barren=5)
    await publish(services, build_id)
    await publish(services, build_id)  # and a message that comes twice

    assert (await build(services, build_id)).state is BuildState.done
    keys = [(row["problem"], row["sample_idx"]) for row in await manifest(services, build_id)]
    assert keys == sorted(set(keys))
    assert len(keys) == 6
    async with services.database.begin() as session:
        assert await session.scalar(select(func.count()).where(Version.build_id == build_id)) == 1
        covered = select(func.sum(File.hi - File.lo)).where(File.build_id == build_id, File.kind == "compact")
        assert await session.scalar(covered) == 6
    assert await whole(services) == []


async def test_of_two_publishers_one_works(services: Services, worked: Worked) -> None:
    build_id = await worked(problems=1, n=1)
    async with services.database.begin() as session:
        assert await claim_build(session, build_id, BuildState.finishing, worker="other", seconds=60) is not None
    await publish(services, build_id)
    assert (await build(services, build_id)).state is BuildState.finishing


async def test_a_publisher_that_lost_its_lease_publishes_nothing(
    services: Services, worked: Worked, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await worked(problems=2, n=1)
    original = publishing._Publisher._select

    async def overtaken(self: Any, *args: Any) -> Any:
        result = await original(self, *args)
        async with services.database.begin() as session:
            await session.execute(update(Build).where(Build.id == build_id).values(lease_token=None))
        return result

    with monkeypatch.context() as patched:
        patched.setattr(publishing._Publisher, "_select", overtaken)
        await publish(services, build_id)
    async with services.database.begin() as session:
        assert await session.scalar(select(func.count()).where(Version.build_id == build_id)) == 0
    await publish(services, build_id)
    assert len(await manifest(services, build_id)) == 2


async def test_a_cancelled_build_is_not_published(services: Services, worked: Worked) -> None:
    build_id = await worked(problems=1, n=1)
    async with services.database.begin() as session:
        lifecycle.cancel(await session.get_one(Build, build_id))
    await publish(services, build_id)
    async with services.database.begin() as session:
        assert await session.scalar(select(func.count()).where(Version.build_id == build_id)) == 0


async def test_the_check_finds_what_is_wrong(services: Services, worked: Worked) -> None:
    build_id = await worked(problems=2, n=2)
    await publish(services, build_id)
    assert await whole(services) == []
    async with services.database.begin() as session:
        file = await session.scalar(select(File).where(File.build_id == build_id, File.kind == "compact"))
        assert file is not None
        first = (Sample.build_id == build_id, Sample.problem == 0, Sample.sample_idx == 0)
        await session.execute(update(Sample).where(*first).values(row=2))
    assert any("is not sample 0.0" in finding for finding in await whole(services))
    async with services.database.begin() as session:
        await session.execute(update(Sample).where(*first).values(row=99))
    assert any("points at no row" in finding for finding in await whole(services))
    async with services.database.begin() as session:
        await session.execute(update(Sample).where(*first).values(row=0))
    path = Path(services.store.url) / file.uri
    written = path.read_bytes()
    path.write_bytes(written[:-1])
    assert any("not what was written" in finding for finding in await whole(services))
    path.write_bytes(written)  # versions are looked at, whoever deleted their builds


async def test_a_lost_file_ends_the_build_with_its_name(services: Services, worked: Worked) -> None:
    build_id = await worked(problems=2, n=2)
    async with services.database.begin() as session:
        uri = await session.scalar(select(File.uri).where(File.build_id == build_id))
    assert uri is not None
    services.store.remove(uri)
    await publish(services, build_id)
    ended = await build(services, build_id)
    assert ended.state is BuildState.failed
    assert ended.error is not None
    assert ended.error["type"] == "store_damaged"
    assert uri in ended.error["detail"]
