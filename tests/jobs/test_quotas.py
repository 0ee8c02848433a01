"""What an owner may ask for at once, where that is refused, and how whoever runs the service changes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from rlt_client.errors import Forbidden, InvalidRequest, Overloaded
from rlt_client.schemas.builds import BuildProblem, BuildRequest, BuildState, RetryRequest, Source
from rlt_jobs import quota
from rlt_jobs.builds import quotas
from rlt_jobs.builds.importer import run_import
from rlt_jobs.builds.models import Build, Sample, Shard
from rlt_jobs.builds.quotas import Quota
from rlt_jobs.builds.retry import Retries
from rlt_jobs.builds.service import BuildService
from rlt_jobs.builds.work import Services
from rlt_jobs.store.models import Upload
from rlt_jobs.store.service import StoreService

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWNER = "quota-owner"


class Api:
    """The service with some quotas, for one owner whose earlier builds and uploads are forgotten."""

    def __init__(self, services: Services, **most: int) -> None:
        named = {f"quota_{name}": value for name, value in most.items()}
        self.settings = services.settings.model_copy(update=named)
        self.builds = BuildService(self.settings, services.database, services.store)
        self.store = StoreService(self.settings, services.database, services.store)
        self._database = services.database

    async def clean(self) -> None:
        async with self._database.begin() as session:
            mine = update(Build).where(Build.owner == OWNER)
            await session.execute(mine.values(owner="forgotten", idempotency_key=None, state=BuildState.cancelled))
            await session.execute(update(Upload).where(Upload.owner == OWNER).values(owner="forgotten"))
            await session.execute(delete(Quota))

    async def submit(self, problems: int = 1, n: int = 1, key: str | None = None, **options: Any) -> Any:
        rows = [BuildProblem(question=f"Q{i}", answer="A") for i in range(problems)]
        return await self.builds.submit(OWNER, BuildRequest(dataset="d", problems=rows, n=n, **options), key)

    async def upload(self, body: bytes) -> Any:
        async def parts() -> AsyncIterator[bytes]:
            yield body

        return await self.store.upload(OWNER, "problems.jsonl", "application/jsonl", parts())


@pytest.fixture
def limited(services: Services) -> Any:
    async def make(**most: int) -> Api:
        api = Api(services, **most)
        await api.clean()
        return api

    return make


async def test_open_builds_are_counted_and_a_repeated_request_is_not_refused(limited: Any) -> None:
    api = await limited(open_builds=2)
    first = await api.submit(key="one")
    await api.submit()
    with pytest.raises(Forbidden, match=r"2 of your builds are open, of 2 at most") as refused:
        await api.submit()
    assert refused.value.type == "quota_exceeded"
    assert (await api.submit(key="one")).id == first.id
    await api.builds.act(OWNER, first.id, "cancel")
    await api.submit()


async def test_samples_that_wait_are_counted_without_those_that_are_made(limited: Any) -> None:
    api = await limited(queued_samples=10)
    await api.submit(problems=3, n=2)
    with pytest.raises(Forbidden, match=r"asks for 5 samples and 6 of yours wait, of 10 at most"):
        await api.submit(problems=5)
    await api.submit(problems=4)
    with pytest.raises(Forbidden):
        await api.submit()


async def test_samples_asked_for_again_are_counted_and_a_refused_retry_changes_nothing(
    limited: Any, services: Services
) -> None:
    api = await limited(queued_samples=4)
    failed = await api.submit(problems=3)
    async with services.database.begin() as session:
        await session.execute(update(Shard).where(Shard.build_id == failed.id).values(engine_error=3, state="done"))
        await session.execute(update(Build).where(Build.id == failed.id).values(state=BuildState.done))
        row = {"build_id": failed.id, "sample_idx": 0, "try_": 0, "gen_status": "engine_error", "request_key": b"k"}
        await session.execute(insert(Sample), [{**row, "problem": problem} for problem in range(3)])
    waiting = await api.submit(problems=2)
    retries = Retries(api.settings, services.database, api.builds)
    with pytest.raises(Forbidden, match=r"with those of this retry 5 of your samples would wait, of 4 at most"):
        await retries.retry(OWNER, failed.id, RetryRequest())
    assert (await api.builds.get(OWNER, failed.id)).state is BuildState.done
    await api.builds.act(OWNER, waiting.id, "cancel")
    assert (await retries.retry(OWNER, failed.id, RetryRequest())).state is BuildState.running


async def test_samples_of_a_day_are_refused_until_later(limited: Any) -> None:
    api = await limited(samples_per_day=5)
    done = await api.submit(problems=4)
    await api.builds.act(OWNER, done.id, "cancel")  # what was asked for was asked for
    with pytest.raises(Overloaded, match=r"asks for 2 samples and 4 were asked for within 24 hours, of 5") as refused:
        await api.submit(problems=2)
    assert (refused.value.type, refused.value.retry_after) == ("quota_exceeded", 3600)
    await api.submit()


async def test_uploads_are_refused_before_and_after_they_came_and_leave_nothing(
    limited: Any, services: Services
) -> None:
    row = b'{"question": "Q", "answer": "A"}\n'
    api = await limited(upload_bytes=2 * len(row))
    await api.upload(row)
    before = sorted(entry.uri for entry in services.store.list("uploads/"))
    with pytest.raises(Forbidden, match="delete some"):
        await api.upload(row * 2)
    assert sorted(entry.uri for entry in services.store.list("uploads/")) == before
    await api.upload(row)


async def test_uploads_that_end_together_are_counted_in_turn(limited: Any, services: Services) -> None:
    row = b'{"question": "Q", "answer": "A"}\n'
    api = await limited(upload_bytes=2 * len(row))
    before = len(list(services.store.list("uploads/")))
    found = await asyncio.gather(*(api.upload(row) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(each, Forbidden) for each in found) == 2
    assert len(list(services.store.list("uploads/"))) == before + 2


async def test_an_import_that_is_larger_than_the_quota_fails_with_the_numbers_and_can_be_resumed(
    limited: Any, services: Services
) -> None:
    api = await limited(queued_samples=5)
    upload = await api.upload(b"".join(b'{"question": "Q%d", "answer": "A"}\n' % i for i in range(6)))
    request = BuildRequest(dataset="d", source=Source(upload=upload.id), n=1)
    build = await api.builds.submit(OWNER, request, None)
    for_it = Services(api.settings, services.database, services.store, services.teacher, services.reward, worker="w")
    await run_import(for_it, build.id)
    failed = await api.builds.get(OWNER, build.id)
    assert failed.state is BuildState.failed
    assert failed.error.type == "quota_exceeded"
    assert "6 samples" in failed.error.detail
    async with services.database.begin() as session:
        await quotas.set_quota(session, OWNER, queued_samples=6)
    await api.builds.act(OWNER, build.id, "resume")
    await run_import(for_it, build.id)
    resumed = await api.builds.get(OWNER, build.id)
    assert (resumed.state, resumed.counts.problems) == (BuildState.running, 6)


async def test_quotas_are_shown_and_changed_for_one_owner(limited: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api = await limited(open_builds=2)
    await api.submit(problems=3)
    assert await quota.quota(api.settings, ["set", OWNER, "open_builds=1", "running_shards=7"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == ["open_builds", "1", "of", "1"]
    assert shown[1][:2] == ["queued_samples", "3"]
    assert shown[3] == ["running_shards", "0", "of", "7"]
    with pytest.raises(Forbidden):
        await api.submit()
    assert await quota.quota(api.settings, ["set", OWNER, "open_builds=default"]) == 0
    await api.submit()
    async with api._database.begin() as session:
        assert (await session.scalars(select(Quota.owner))).all() == [OWNER]


@pytest.mark.parametrize("arg", ["open_build=1", "open_builds=", "open_builds=-1", "open_builds=1e3"])
async def test_what_is_no_quota_is_told(limited: Any, arg: str) -> None:
    api = await limited()
    with pytest.raises(InvalidRequest):
        await quota.quota(api.settings, ["set", OWNER, arg])


@pytest.mark.parametrize("args", [[], ["show"], ["set", "ann"], ["show", "ann", "more"], ["drop", "ann"]])
async def test_wrong_usage_is_told(limited: Any, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    api = await limited()
    assert await quota.quota(api.settings, args) == 2
    assert "usage" in capsys.readouterr().err
