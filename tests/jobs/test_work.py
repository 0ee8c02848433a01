"""What a worker makes of a shard when teacher and scorer do as they should, and when they do not."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from plugins.shards import hold_back
from sqlalchemy import func, select, update

from rlt_client.errors import APIError, InternalError, InvalidRequest, NotFound, Overloaded, Unauthorized, Unavailable
from rlt_client.schemas.builds import BuildState, ShardState
from rlt_client.schemas.common import FieldError, GenStatus, ScoreStatus
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse
from rlt_client.schemas.reward import RewardItem, RewardRequest
from rlt_jobs import leases
from rlt_jobs.builds import control, lifecycle, work
from rlt_jobs.builds.models import Build, Sample, Score, Scorer, Shard
from rlt_jobs.builds.outcomes import decompress
from rlt_jobs.builds.spec import sample_seed
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.database import Database
from rlt_jobs.store.models import File, Spool
from rlt_jobs.store.traces import Traces

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def shard_of(database: Database, build_id: int) -> Shard:
    async with database.begin() as session:
        return (await session.scalars(select(Shard).where(Shard.build_id == build_id))).one()


async def samples(database: Database, build_id: int) -> dict[tuple[int, int], Sample]:
    async with database.begin() as session:
        rows = await session.scalars(select(Sample).where(Sample.build_id == build_id))
        return {(row.problem, row.sample_idx): row for row in rows}


async def scores(database: Database, build_id: int) -> dict[tuple[int, int], Score]:
    async with database.begin() as session:
        rows = await session.scalars(select(Score).where(Score.build_id == build_id))
        return {(row.problem, row.sample_idx): row for row in rows}


async def run(services: Services, build_id: int) -> Shard:
    """One shift, as if the pause after a lease that ended badly were over."""
    await hold_back(services.database, build_id, None)
    await work_shard(services, (await shard_of(services.database, build_id)).id)
    return await shard_of(services.database, build_id)


async def test_every_sample_is_asked_for_once_with_its_own_seed(
    services: Services, make_build: Any, platform: Any
) -> None:
    build_id = await make_build(problems=3, n=2, seed=11)
    shard = await run(services, build_id)
    asked = [r for r in platform.requests if isinstance(r, ExplainRequest)]
    seeds = sorted(sample_seed(11, p, s, 0) for p in range(3) for s in range(2))
    assert sorted(r.seed or 0 for r in asked) == seeds
    assert all((r.n, r.score, r.return_tokens) == (1, False, True) for r in asked)
    assert (shard.state, shard.complete, shard.scored) == (ShardState.done, 6, 6)
    async with services.database.begin() as session:
        assert (await session.get_one(Build, build_id)).state is BuildState.finishing
        file = (await session.scalars(select(File).where(File.build_id == build_id))).one()
    made = await samples(services.database, build_id)
    texts = Traces(services.store).read((file.uri, row.row or 0) for row in made.values())
    for (problem, idx), row in made.items():
        expected = platform.said(f"Q{problem}", sample_seed(11, problem, idx, 0))
        assert texts[file.uri, row.row or 0]["explanation"] == expected


async def test_the_teachers_log_probs_ride_along_and_are_kept_only_if_asked(
    services: Services, make_build: Any, platform: Any
) -> None:
    for keep in (False, True):
        build_id = await make_build(problems=1, n=1, keep_tokens=keep)
        await run(services, build_id)
        (item,) = [i for r in platform.requests if isinstance(r, RewardRequest) for i in r.items]
        platform.requests.clear()
        assert item.teacher is not None
        assert item.completion is not None
        (row,) = (await samples(services.database, build_id)).values()
        async with services.database.begin() as session:
            uri = await session.scalar(select(File.uri).where(File.id == row.file_id))
        trace = Traces(services.store).read([(uri or "", row.row or 0)])[uri or "", row.row or 0]
        assert (trace["token_ids"] is not None, trace["logprobs"] is not None) == (keep, keep)
        if keep:
            assert trace["token_ids"] == item.teacher.token_ids


async def test_a_sample_without_a_text_is_kept_and_scored_as_it_was_emitted(
    services: Services, make_build: Any, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was cut off, or that spells a tag: the teacher says what it emitted and calls nothing an explanation."""
    explain = platform.explain

    def cut_off(request: ExplainRequest) -> ExplainResponse:
        reply: ExplainResponse = explain(request)
        (made,) = reply.explanations
        unclosed = {"text": None, "completion": "so far", "gen_status": GenStatus.truncated}
        return reply.model_copy(update={"explanations": [made.model_copy(update=unclosed)]})

    monkeypatch.setattr(platform, "explain", cut_off)
    build_id = await make_build(problems=1, n=1)
    shard = await run(services, build_id)
    (row,) = (await samples(services.database, build_id)).values()
    async with services.database.begin() as session:
        uri = await session.scalar(select(File.uri).where(File.id == row.file_id)) or ""
    trace = Traces(services.store).read([(uri, row.row or 0)])[uri, row.row or 0]
    assert (trace["explanation"], trace["completion"]) == (None, "so far")
    (item,) = [i for r in platform.requests if isinstance(r, RewardRequest) for i in r.items]
    assert (item.completion, item.explanation) == ("so far", None)
    assert (shard.truncated, shard.complete, shard.scored) == (1, 0, 1)


@pytest.mark.parametrize(
    ("spec", "kl"),
    [
        ("rlt", "k1"),
        ("info_gain", None),
        ({"preset": "rlpr", "mapping": {"kind": "sigmoid"}}, None),
        ("rlt_segments", "k1_segments"),  # not comparable with what is taken over tokens
        ({"kl": "exact"}, "exact"),
    ],
    ids=str,
)
async def test_every_reward_can_be_built_with(
    services: Services, make_build: Any, platform: Any, spec: Any, kl: str | None
) -> None:
    build_id = await make_build(problems=1, n=2, spec=spec)
    shard = await run(services, build_id)
    assert (shard.state, shard.scored) == (ShardState.done, 2)
    assert all(score.reward is not None for score in (await scores(services.database, build_id)).values())
    async with services.database.begin() as session:
        scorer = (await session.scalars(select(Scorer).join(Build).where(Build.id == build_id))).one()
    assert scorer.kl == kl
    items = [item for r in platform.requests if isinstance(r, RewardRequest) for item in r.items]
    assert all((item.teacher is None) == (kl == "exact") for item in items)  # which has no use for sampled log-probs


async def test_only_what_is_missing_is_asked_for_again(services: Services, make_build: Any, platform: Any) -> None:
    build_id = await make_build(problems=4, n=1)
    failing = [True]
    platform.rules.append(
        lambda path, question: Unavailable("gone") if failing[0] and path == "/explain" and question == "Q3" else None
    )
    shard = await run(replace(services, settings=services.settings.model_copy(update={"start_in_flight": 1})), build_id)
    assert (shard.state, shard.complete) == (ShardState.ready, 3)
    failing[0] = False
    platform.requests.clear()
    shard = await run(services, build_id)
    assert [r.question for r in platform.requests if isinstance(r, ExplainRequest)] == ["Q3"]
    assert (shard.state, shard.complete) == (ShardState.done, 4)


@pytest.mark.parametrize("error", [Unavailable("down"), Unauthorized("the key was withdrawn")])
async def test_a_server_that_is_not_ready_changes_nothing(
    services: Services, make_build: Any, platform: Any, error: APIError
) -> None:
    build_id = await make_build()
    platform.rules.append(lambda *_: error)
    for _ in range(services.settings.max_barren + 2):  # however often it is rung for
        shard = await run(services, build_id)
    assert (shard.state, shard.barren, shard.complete) == (ShardState.ready, 0, 0)
    assert shard.error is not None
    assert "NotReady" in shard.error
    assert await samples(services.database, build_id) == {}


@pytest.mark.parametrize(("path", "reason"), [("/explain", "TeacherUnhealthy"), ("/reward", "RewardUnhealthy")])
async def test_a_server_that_breaks_in_the_middle_makes_no_sample_an_error(
    services: Services, make_build: Any, platform: Any, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    monkeypatch.setattr(leases, "_pause", lambda: timedelta(hours=1))  # one lease a shift, however slow it is
    build_id = await make_build(problems=3, n=1)
    platform.rules.append(lambda asked, _: Unavailable("out of memory") if asked == path else None)
    shard = await run(services, build_id)
    assert (shard.state, shard.barren) == (ShardState.ready, 1)
    assert shard.error is not None
    assert reason in shard.error
    assert await samples(services.database, build_id) == {}
    platform.rules.clear()
    assert (await run(services, build_id)).state is ShardState.done


async def test_a_problem_that_breaks_the_server_each_time_ends_as_a_dead_shard(
    services: Services, make_build: Any, platform: Any
) -> None:
    build_id = await make_build(problems=1, n=1)
    platform.rules.append(lambda path, _: Unavailable("crashed") if path == "/explain" else None)
    for _ in range(services.settings.max_barren):
        shard = await run(services, build_id)
    assert (shard.state, shard.barren) == (ShardState.dead, 5)


async def test_a_refusal_for_now_is_waited_out(services: Services, make_build: Any, platform: Any) -> None:
    build_id = await make_build(problems=4, n=1)
    refusals = iter([Overloaded("full", retry_after=0.01)] * 3)
    platform.rules.append(lambda path, _: next(refusals, None) if path == "/explain" else None)
    shard = await run(services, build_id)
    assert (shard.state, shard.complete, shard.engine_error) == (ShardState.done, 4, 0)


async def test_an_error_of_the_server_at_one_sample_is_that_samples_outcome(
    services: Services, make_build: Any, platform: Any
) -> None:
    build_id = await make_build(problems=2, n=1)
    bug = InternalError("a bug")
    platform.rules.append(lambda path, question: bug if (path, question) == ("/explain", "Q0") else None)
    platform.rules.append(lambda path, question: bug if (path, question) == ("/reward", "Q1") else None)
    shard = await run(services, build_id)
    made = await samples(services.database, build_id)
    assert (made[0, 0].gen_status, made[0, 0].gen_reason) == (GenStatus.engine_error, "internal_error")
    assert made[1, 0].gen_status is GenStatus.complete
    assert (shard.state, shard.engine_error, shard.complete, shard.scored) == (ShardState.done, 1, 1, 0)


async def test_a_question_that_is_refused_is_its_own_outcome(
    services: Services, make_build: Any, platform: Any
) -> None:
    build_id = await make_build(problems=2, n=1)
    error = InvalidRequest(errors=[FieldError(pointer="/question", detail="too long")], type="too_long")
    platform.rules.append(lambda path, question: error if (path, question) == ("/explain", "Q0") else None)
    shard = await run(services, build_id)
    assert (shard.state, shard.engine_error, shard.complete) == (ShardState.done, 1, 1)
    assert (await samples(services.database, build_id))[0, 0].gen_reason == "too_long"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/explain", NotFound("no policy p", type="unknown_policy")),
        ("/explain", InvalidRequest(errors=[FieldError(pointer="/format", detail="unknown")], type="unknown_format")),
        ("/reward", InvalidRequest("no such student", type="unknown_student")),
    ],
)
async def test_what_no_server_will_take_fails_the_build_at_once(
    services: Services, make_build: Any, platform: Any, path: str, error: APIError
) -> None:
    build_id = await make_build(problems=3, n=2)
    platform.rules.append(lambda asked, _: error if asked == path else None)
    shard = await run(services, build_id)
    async with services.database.begin() as session:
        build = await session.get_one(Build, build_id)
    assert build.state is BuildState.failed
    assert build.error is not None
    assert build.error["type"] == error.type
    assert (shard.state, shard.barren) == (ShardState.ready, 0)
    assert await samples(services.database, build_id) == {}


async def test_an_item_that_cannot_be_scored_is_an_outcome_with_a_reason(
    services: Services, make_build: Any, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reward(item: RewardItem) -> float:
        if item.question == "Q1":
            raise ValueError("kl_unavailable")
        return -1.5

    monkeypatch.setattr(platform, "_reward", reward)
    build_id = await make_build(problems=2, n=1)
    shard = await run(services, build_id)
    found = await scores(services.database, build_id)
    assert (found[0, 0].status, found[0, 0].reward, found[0, 0].ss_mean) == (ScoreStatus.scored, -1.5, -1.5)
    assert (found[1, 0].status, found[1, 0].reason, found[1, 0].reward) == (
        ScoreStatus.score_error,
        "kl_unavailable",
        None,
    )
    assert (shard.complete, shard.scored, shard.score_error) == (2, 1, 1)


async def test_an_error_is_filed_under_the_builds_scorer_also_by_a_lease_that_got_no_score(
    services: Services, make_build: Any, platform: Any
) -> None:
    build_id = await make_build(problems=2, n=1, shard_samples=1)
    platform.rules.append(lambda path, q: InternalError("broken") if (path, q) == ("/reward", "Q1") else None)
    async with services.database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id).order_by(Shard.id))).all()
    await hold_back(services.database, build_id, datetime.now(UTC) + timedelta(hours=1), lo=1)
    for shard_id in ids:  # one after the other: a shift would take both at once
        await work_shard(services, shard_id)
        await hold_back(services.database, build_id, None)
    found = await scores(services.database, build_id)
    assert {key: score.status for key, score in found.items()} == {
        (0, 0): ScoreStatus.scored,
        (1, 0): ScoreStatus.score_error,
    }


async def test_kind_score_scores_the_given_explanations_without_a_teacher(
    services: Services, make_build: Any, platform: Any
) -> None:
    build_id = await make_build(problems=2, n=1, kind="score")
    shard = await run(services, build_id)
    assert not [r for r in platform.requests if isinstance(r, ExplainRequest)]
    items = [item for r in platform.requests if isinstance(r, RewardRequest) for item in r.items]
    assert [(item.explanation, item.completion, item.teacher) for item in items] == [("because", None, None)] * 2
    assert (shard.state, shard.complete, shard.scored) == (ShardState.done, 2, 2)


@pytest.mark.parametrize("stop", [BuildState.paused, BuildState.cancelled])
async def test_a_build_that_is_stopped_keeps_what_is_finished(
    services: Services, make_build: Any, platform: Any, stop: BuildState
) -> None:
    build_id = await make_build(problems=80, n=1)
    slow(platform, 0.5, most=40)
    working = asyncio.create_task(run(services, build_id))
    await until_some(services.database, build_id)
    async with services.database.begin() as session:
        await session.execute(update(Build).where(Build.id == build_id).values(state=stop))
    shard = await asyncio.wait_for(working, 60)
    made = await samples(services.database, build_id)
    assert 0 < len(made) < 80
    assert (shard.state, shard.complete, shard.lease_token) == (ShardState.ready, len(made), None)
    async with services.database.begin() as session:
        spooled = (await session.scalars(select(Spool.texts).where(Spool.build_id == build_id))).all()
    assert all(decompress(blob).explanation for blob in spooled)
    assert len(spooled) == len(made)


async def test_a_paused_build_goes_on_where_it_stopped(services: Services, make_build: Any, platform: Any) -> None:
    build_id = await make_build(problems=80, n=1)
    slow(platform, 0.5, most=40)
    working = asyncio.create_task(run(services, build_id))
    await until_some(services.database, build_id)
    async with services.database.begin() as session:
        lifecycle.pause(await session.get_one(Build, build_id))
    await working
    before = len(await samples(services.database, build_id))
    async with services.database.begin() as session:
        await lifecycle.resume(session, await session.get_one(Build, build_id))
    platform.requests.clear()
    slow(platform, 0)
    shard = await run(services, build_id)
    assert (shard.state, shard.complete) == (ShardState.done, 80)
    assert len([r for r in platform.requests if isinstance(r, ExplainRequest)]) == 80 - before
    assert 0 < before < 80


async def test_a_lost_lease_stops_the_work_and_the_flush(services: Services, make_build: Any, platform: Any) -> None:
    build_id = await make_build(problems=80, n=1)
    slow(platform, 0.5)
    working = asyncio.create_task(run(services, build_id))
    await until_some(services.database, build_id)
    another = uuid4()
    async with services.database.begin() as session:  # reaped, and claimed by another
        await session.execute(update(Shard).where(Shard.build_id == build_id).values(lease_token=another))
    kept = len(await samples(services.database, build_id))
    await asyncio.wait_for(working, 60)
    assert len(await samples(services.database, build_id)) == kept
    shard = await shard_of(services.database, build_id)
    assert (shard.state, shard.lease_token) == (ShardState.running, another)


async def test_a_worker_that_shuts_down_gives_back_at_once(services: Services, make_build: Any, platform: Any) -> None:
    build_id = await make_build(problems=60, n=1)
    slow(platform, 0.5, most=30)
    draining = [False]
    working = asyncio.create_task(run(replace(services, draining=lambda: draining[0]), build_id))
    await until_some(services.database, build_id)
    draining[0] = True
    shard = await asyncio.wait_for(working, 60)
    assert (shard.state, shard.barren) == (ShardState.ready, 0)
    assert await run(replace(services, draining=lambda: True), build_id)  # and takes nothing more
    assert (await shard_of(services.database, build_id)).state is ShardState.ready


async def test_a_lease_ends_before_celery_would_end_it(
    services: Services, make_build: Any, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await make_build(problems=60, n=1)
    slow(platform, 0.5, most=30)
    working = asyncio.create_task(run(services, build_id))
    await until_some(services.database, build_id)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + services.settings.shard_limit_seconds)
    for module in (control, work):
        monkeypatch.setattr(module, "time", later)
    shard = await asyncio.wait_for(working, 60)
    assert (shard.state, shard.barren) == (ShardState.ready, 0)
    assert shard.complete > 0


async def test_a_scorer_that_changes_between_leases_is_noticed(
    services: Services, make_build: Any, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await make_build(problems=2, n=1, shard_samples=1)
    async with services.database.begin() as session:
        ids = select(Shard.id).where(Shard.build_id == build_id).order_by(Shard.lo)
        first, second = (await session.scalars(ids)).all()
    await hold_back(services.database, build_id, datetime.now(UTC) + timedelta(hours=1), lo=1)
    await work_shard(services, first)
    await hold_back(services.database, build_id, None)
    score = platform.score

    def other(request: RewardRequest) -> Any:
        reply = score(request)
        return reply.model_copy(update={"student": reply.student.model_copy(update={"revision": "sha256:1"})})

    monkeypatch.setattr(platform, "score", other)
    await work_shard(services, second)
    async with services.database.begin() as session:
        shard = await session.get_one(Shard, second)
        assert await session.scalar(select(func.count()).where(Sample.build_id == build_id)) == 1
        build = await session.get_one(Build, build_id)
        assert (build.state, (build.error or {})["type"]) == (BuildState.failed, "scorer_changed")
    assert (shard.state, shard.barren) == (ShardState.ready, 0)
    assert shard.error is not None
    assert "sha256:1" in shard.error

    monkeypatch.undo()
    async with services.database.begin() as session:
        await lifecycle.resume(session, await session.get_one(Build, build_id))
    await work_shard(services, second)
    async with services.database.begin() as session:
        assert (await session.get_one(Build, build_id)).state is BuildState.finishing


async def test_a_database_that_goes_away_for_a_moment_is_waited_for(
    services: Services, make_build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush fails twice as it would without a connection; nothing is lost and nothing asked for twice."""
    from rlt_jobs.builds import making, running

    build_id = await make_build(problems=5, n=1)
    flush, failures = making.flush, iter(range(2))

    async def flaky(*args: Any, **options: Any) -> int:
        if next(failures, None) is not None:
            raise Unavailable("no connection")
        return await flush(*args, **options)

    monkeypatch.setattr(making, "flush", flaky)
    monkeypatch.setattr(running, "DATABASE_PAUSE", 0.01)
    shard = await run(services, build_id)
    assert (shard.state, shard.complete) == (ShardState.done, 5)


def slow(platform: Any, seconds: float, *, most: float = math.inf) -> None:
    """Explanations take their time, without holding up the event loop, and those after so many take for ever."""
    platform.delay, platform.left = seconds, most


async def until_some(database: Database, build_id: int) -> None:
    async with asyncio.timeout(60):
        while not await samples(database, build_id):  # noqa: ASYNC110 the event is a commit of another connection
            await asyncio.sleep(0.02)
