"""What a version tells of where it comes from."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from rlt_client.schemas.builds import RescoreRequest, Sampling
from rlt_client.testing.explanations import ENGINE
from rlt_jobs.builds.derived import DerivedBuilds
from rlt_jobs.builds.models import Build, Sample, Scorer, Shard
from rlt_jobs.builds.repository import ScorerKey, add_engines
from rlt_jobs.builds.spec import request_key
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.store.models import Version
from rlt_jobs.store.publish import publish

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def finish(services: Services, build_id: int) -> Version:
    async with services.database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
    for shard_id in ids:
        await work_shard(services, shard_id)
    await publish(services, build_id)
    async with services.database.begin() as session:
        return (await session.scalars(select(Version).where(Version.build_id == build_id))).one()


async def test_it_names_models_engines_reward_format_sampling_and_code(services: Services, make_build: Any) -> None:
    version = await finish(services, await make_build(problems=1, n=1, seed=5, spec={"preset": "rlt", "lambda": 2}))
    lineage = version.lineage
    assert lineage["policy_revisions"] == ["sha256:0"]
    assert lineage["engines"] == [ENGINE]
    scorer = lineage["scorer"]
    assert (scorer["student"], scorer["student_revision"]) == ("fake-student", "sha256:0")
    assert (scorer["dtype"], scorer["engine"], scorer["teacher_source"]) == ("float32", ENGINE, "sent")
    assert (lineage["reward"]["preset"], lineage["reward"]["lambda"], lineage["reward"]["ss_min_coef"]) == (
        "rlt",
        2,
        0.01,
    )
    assert lineage["format"]["hash"]
    assert (lineage["seed"], lineage["sampling"]["temperature"]) == (5, 0.7)
    assert set(lineage["code"]) == {"rlt-jobs", "rlt-client"}
    assert (lineage["parent"], lineage["of_build"], lineage["source"]) == (None, None, None)
    assert lineage["selection"] == version.selection


async def test_of_a_derived_version_it_names_the_parent_and_who_made_the_samples(
    services: Services, make_build: Any
) -> None:
    data = await make_build(problems=1, n=1, seed=9, sampling={"temperature": 0.25})
    parent = await finish(services, data)
    derived = DerivedBuilds(services.settings, services.database)
    child = await finish(services, await derived.rescore("ann", data, RescoreRequest(spec="ss_only"), None))
    assert (child.lineage["parent"], child.lineage["of_build"]) == (parent.id, data)
    assert (child.lineage["seed"], child.lineage["sampling"]["temperature"]) == (9, 0.25)
    assert child.lineage["engines"] == parent.lineage["engines"]
    assert (child.lineage["reward"]["preset"], child.lineage["scorer"]["teacher_source"]) == ("ss_only", None)
    async with services.database.begin() as session:
        scorer = await session.get_one(Scorer, child.scorer_id)
    assert (scorer.dtype, scorer.engine) == ("float32", ENGINE)


async def test_engines_of_several_versions_are_all_kept_once(services: Services, make_build: Any) -> None:
    build_id = await make_build(problems=1, n=1)
    async with services.database.begin() as session:
        for names in (["vllm 2"], ["vllm 1"], ["vllm 2", "vllm 1"], []):
            await add_engines(session, build_id, names)
        assert (await session.get_one(Build, build_id)).engines == ["vllm 1", "vllm 2"]


async def test_flags_of_the_explanation_are_kept_with_the_sample(
    services: Services, make_build: Any, platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = platform._teacher.explain

    def flagged(request: Any) -> Any:
        reply = answer(request)
        reply.explanations[0].flags = ["refers_to_given_solution"]
        return reply

    monkeypatch.setattr(platform._teacher, "explain", flagged)
    build_id = await make_build(problems=2, n=1, selection={"without_flags": ["repetition"]})
    version = await finish(services, build_id)
    async with services.database.begin() as session:
        kept = await session.scalars(select(Sample.flags).where(Sample.build_id == build_id))
        assert set(map(tuple, kept)) == {("refers_to_given_solution",)}
    assert version.rows == 2


@pytest.mark.parametrize("other", [{"engine": "vllm 2"}, {"seed": 1}, {"policy_revision": "sha256:1"}])
async def test_a_request_key_tells_engines_apart(other: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"policy_revision": "sha256:0", "engine": "vllm 1", "format_hash": "f", "seed": 0}
    rest: dict[str, Any] = {"problem": ("Q", "A"), "sampling": Sampling()}
    assert request_key(**asked, **rest) == request_key(**asked, **rest)
    assert request_key(**{**asked, **other}, **rest) != request_key(**asked, **rest)


@pytest.mark.parametrize("other", [{"dtype": "float16"}, {"engine": "torch 3"}, {"spec": '{"lambda": 1}'}])
async def test_numbers_engine_and_coefficients_are_of_the_scorer(other: dict[str, Any]) -> None:
    """Scores by other coefficients are other scores, even where all components are the same."""
    key: dict[str, Any] = dict.fromkeys(ScorerKey.__dataclass_fields__, "x")
    assert ScorerKey(**{**key, **other}).hash() != ScorerKey(**key).hash()
    assert ScorerKey(**{**key, "student": "another name"}).hash() == ScorerKey(**key).hash()
