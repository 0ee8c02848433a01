"""Versions that are published, activated, rolled back, unloaded and deleted, in engines that say what they hold."""

from __future__ import annotations

import asyncio
import gc
import re
import shutil
import weakref

import pytest
from plugins.fake_engine import asked, eventually, refusal
from plugins.policy_world import World, held_by, name_of, publish

from rlt_client.errors import Conflict, InvalidRequest, NotFound, Unavailable
from rlt_client.schemas.models import ModelKind
from rlt_client.schemas.policies import LoadPolicy, PolicyState
from rlt_service.revision import model_revision


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def base(world):
    return world.model.ref.revision


def states(served):
    return [(info.name, info.revision[-4:], info.state.value, info.active) for info in served.policies.infos()]


def names(engine):
    return set(engine.loaded)


async def refused(awaitable, error, type):
    with pytest.raises(error) as caught:
        await awaitable
    assert caught.value.type == type
    return caught.value


# What a request gets


async def test_the_model_alone(world, base):
    async with world.serving() as served:
        assert await held_by(served) == base
        assert await held_by(served, "base") == base
        assert await held_by(served, base) == base
        assert await held_by(served, f"base@{base}") == base
        error = await refused(held_by(served, "nobody"), NotFound, "policy_not_found")
        assert error.errors[0].pointer == "/policy"
        assert "base" in error.detail


async def test_an_adapter_beside_the_base(world, base):
    engine = world.engine()
    folder = world.lora("one", 1)
    async with world.serving(engine) as served:
        done = await publish(served, folder)
        revision = f"{base}+{model_revision(folder)}"
        assert (done.loaded, done.version.ref.revision) == (True, revision)
        assert names(engine) == {name_of(done.version)}
        assert re.fullmatch(r"run@[0-9a-f]{16}-[0-9a-f]{8}", name_of(done.version))
        assert await held_by(served) == base
        for name in ("run", revision, f"run@{revision}"):
            assert await held_by(served, name) == revision


async def test_names_of_all_kinds_become_safe_ones(world):
    async with world.serving() as served:
        done = await publish(served, world.lora("one", 1), name="org/très@1+x" + "y" * 100)
        assert re.fullmatch(r"[\w.@-]{1,120}", name_of(done.version), re.ASCII)
        assert await held_by(served, done.version.ref.name) == done.version.ref.revision


async def test_the_same_again_does_nothing(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        first = await publish(served, world.lora("one", 1))
        again = await publish(served, world.lora("copy", 1))
        assert (again.loaded, again.version) == (False, first.version)
        assert names(engine) == {name_of(first.version)}
        activated = await publish(served, world.lora("one", 1), activate=True)
        assert activated.loaded is False
        assert await held_by(served) == first.version.ref.revision


async def test_a_new_version_takes_its_names_place_and_the_old_one_ends_with_its_requests(world):
    engine = world.engine(seconds=0.01)
    async with world.serving(engine) as served:
        old = (await publish(served, world.lora("one", 1))).version
        name, revision = name_of(old), old.ref.revision
        async with served.policies.using("run") as use:
            new = (await publish(served, world.lora("two", 2))).version
            assert await held_by(served, "run") == new.ref.revision
            assert names(engine) == {name, name_of(new)}
            sample = await use.group().sample(asked())
            assert sample.finish_reason.endswith(f"/{name}")
            [info] = [info for info in served.policies.infos() if info.revision == revision]
            assert (info.state, info.requests) == (PolicyState.retiring, 1)
            await refused(held_by(served, revision), NotFound, "policy_not_found")
        await eventually(lambda: names(engine) == {name_of(new)})
        assert [info.name for info in served.policies.infos()] == ["run", "base"]
        assert not engine.wrong


async def test_what_nobody_uses_any_more_is_forgotten(world):
    async with world.serving() as served:
        for content in range(5):
            done = await publish(served, world.lora("one", content))
        seen = weakref.ref((await publish(served, world.lora("one", 9))).version)
        await publish(served, world.lora("one", 10))
        del done

        def forgotten():
            gc.collect()
            return seen() is None

        await eventually(forgotten)
        assert len(served.policies.infos()) == 2


# Active, and back


async def test_activation_and_rollback(world, base):
    async with world.serving() as served:
        revisions = [base]
        for content in (1, 2, 3):
            done = await publish(served, world.lora(f"step-{content}", content), activate=True)
            revisions.append(done.version.ref.revision)
            assert await held_by(served) == revisions[-1]
        assert [v.ref.revision for v in served.host.book.history] == revisions[-2::-1]
        assert states(served)[1:3] == [
            ("run", revisions[2][-4:], "known", False),
            ("run", revisions[1][-4:], "known", False),
        ]
        for expected in revisions[-2::-1]:
            assert (await served.host.rollback()).ref.revision == expected
            assert await held_by(served) == expected
        await refused(served.host.rollback(), Conflict, "nothing_to_roll_back")
        assert await held_by(served, "run") == revisions[3], "a name means its newest version"


async def test_activation_after_a_rollback_begins_a_new_line(world, base):
    async with world.serving() as served:
        one = (await publish(served, world.lora("one", 1), activate=True)).version
        await publish(served, world.lora("two", 2), activate=True)
        await served.host.rollback()
        three = (await publish(served, world.lora("three", 3), activate=True)).version
        assert [v.ref.revision for v in served.host.book.history] == [one.ref.revision, base]
        assert {info.revision for info in served.policies.infos()} == {base, one.ref.revision, three.ref.revision}
        await served.host.rollback()
        assert await held_by(served) == one.ref.revision


async def test_a_rollback_that_says_from_where_may_be_repeated(world, base):
    async with world.serving() as served:
        one = (await publish(served, world.lora("one", 1), activate=True)).version.ref.revision
        two = (await publish(served, world.lora("two", 2), activate=True)).version.ref.revision
        assert (await served.host.rollback(two)).ref.revision == one
        error = await refused(served.host.rollback(two), Conflict, "revision_mismatch")
        assert error.errors[0].pointer == "/expected_revision"
        assert await held_by(served) == one


async def test_an_active_version_stays_when_its_name_means_another(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        one = (await publish(served, world.lora("one", 1), activate=True)).version
        two = (await publish(served, world.lora("two", 2))).version
        assert await held_by(served) == one.ref.revision
        assert await held_by(served, "run") == two.ref.revision
        assert await held_by(served, f"run@{one.ref.revision}") == one.ref.revision
        await served.host.activate("run")
        assert await held_by(served) == two.ref.revision
        await eventually(lambda: names(engine) == {name_of(two)})
        await refused(held_by(served, one.ref.revision), Conflict, "policy_not_loaded")


async def test_a_version_of_many_is_activated_by_its_revision(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        one = (await publish(served, world.lora("one", 1), activate=True)).version
        old_name = name_of(one)
        await publish(served, world.lora("two", 2), activate=True)
        await served.host.activate("run", one.ref.revision)
        assert await held_by(served) == one.ref.revision
        assert name_of(one) != old_name, "a served name is never used again"
        await refused(served.host.activate("run", "sha256:0"), NotFound, "policy_not_found")


async def test_history_has_an_end(world):
    async with world.serving() as served:
        for content in range(40):
            await publish(served, world.lora("step", content), activate=True)
            (world.root / "step").rename(world.root / f"step-{content}")
        assert len(served.host.book.history) == 32
        assert len(served.policies.infos()) == 34, "32 before, the active one, and the base"


# Full weights


async def test_full_weights_are_known_until_they_are_activated(world, base):
    engine = world.engine()
    folder = world.full("other", 1)
    async with world.serving(engine) as served:
        done = await publish(served, folder, name="other")
        assert (done.loaded, done.version.stay) == (True, None)
        assert (await publish(served, folder, name="other")).loaded is False
        await refused(held_by(served, "other"), Conflict, "policy_not_loaded")
        assert engine.full.revision == base
        await served.host.activate("other")
        assert engine.full.revision == model_revision(folder)
        assert await held_by(served) == await held_by(served, "other") == model_revision(folder)
        await refused(held_by(served, "base"), Conflict, "policy_not_loaded")
        await served.host.rollback()
        assert await held_by(served) == base


async def test_adapters_go_and_come_back_with_their_base(world, base):
    engine = world.engine()
    async with world.serving(engine) as served:
        adapter = (await publish(served, world.lora("one", 1))).version
        unloaded = (await publish(served, world.lora("two", 2), name="two")).version
        await served.host.unload("two")
        name = name_of(adapter)
        await publish(served, world.full("other", 1), name="other", activate=True)
        await refused(held_by(served, "run"), Conflict, "policy_not_loaded")
        await eventually(lambda: not names(engine))
        on_other = (await publish(served, world.lora("one", 1))).version
        assert on_other.base.ref.name == "other"
        assert await held_by(served, "run") == on_other.ref.revision
        await served.host.activate("base")
        await refused(held_by(served, "run"), Conflict, "policy_not_loaded")
        await refused(held_by(served, adapter.ref.revision), NotFound, "policy_not_found")
        await served.host.activate("other")
        assert await held_by(served, "run") == on_other.ref.revision
        assert unloaded.stay is None, "it was unloaded on purpose"
        assert name not in names(engine)


async def test_an_adapter_comes_back_under_a_new_name(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        adapter = (await publish(served, world.lora("one", 1))).version
        name = name_of(adapter)
        await publish(served, world.full("other", 1), name="other", activate=True)
        await served.host.rollback()
        assert await held_by(served, "run") == adapter.ref.revision
        assert names(engine) == {name_of(adapter)} != {name}


async def test_a_rollback_to_an_adapter_brings_its_base_back(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        adapter = (await publish(served, world.lora("one", 1), activate=True)).version
        other = (await publish(served, world.full("other", 1), name="other", activate=True)).version
        assert await held_by(served) == other.ref.revision
        await served.host.rollback()
        assert await held_by(served) == adapter.ref.revision
        assert engine.full.revision == adapter.base.ref.revision


async def test_requests_that_name_none_wait_for_an_active_adapter_that_is_being_loaded(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        adapter = (await publish(served, world.lora("one", 1), activate=True)).version
        await publish(served, world.full("other", 1), name="other", activate=True)
        engine.loading = 0.1
        rollback = asyncio.create_task(served.host.rollback())
        await eventually(lambda: served.host.book.active is adapter)
        assert adapter.stay is None
        assert await held_by(served) == adapter.ref.revision
        await rollback


async def test_one_set_of_weights_under_two_names_is_loaded_once(world, base):
    engine = world.engine()
    async with world.serving(engine) as served:
        await publish(served, world.full("copy", 0), name="alias", activate=True)
        assert engine.asked["replace"] == 0
        async with served.policies.using(None) as use:
            assert (use.policy.name, use.policy.revision) == ("alias", base)
        await publish(served, world.lora("one", 1))
        await served.host.activate("base")
        await served.host.delete("alias")
        assert await held_by(served, "run")


async def test_several_engines_change_one_after_the_other_and_no_request_mixes(world, base):
    engines = [world.engine(seconds=0.02) for _ in range(3)]
    other = model_revision(world.full("other", 1))
    async with world.serving(*engines) as served:
        seen, published = [], asyncio.Event()

        async def ask():
            while not published.is_set():
                seen.append(await held_by(served))
            seen.append(await held_by(served))

        asking = [asyncio.create_task(ask()) for _ in range(8)]
        await eventually(lambda: seen)
        await publish(served, world.root / "other", name="other", activate=True)
        published.set()
        await asyncio.gather(*asking)
        assert set(seen) == {base, other}
        await eventually(lambda: {engine.full.revision for engine in engines} == {other})
        assert not any(engine.wrong for engine in engines)


# Unloading and deleting


async def test_unloading(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        version = (await publish(served, world.lora("one", 1))).version
        await served.host.unload("run")
        await eventually(lambda: not names(engine))
        await refused(held_by(served, "run"), Conflict, "policy_not_loaded")
        await served.host.unload("run")  # as a repeated call does
        await served.host.activate("run")
        assert await held_by(served) == version.ref.revision
        await refused(served.host.unload("run"), Conflict, "policy_is_active")
        await refused(served.host.unload("base"), Conflict, "policy_is_base")
        await refused(served.host.unload("nobody"), NotFound, "policy_not_found")


async def test_deleting(world, base):
    engine = world.engine()
    async with world.serving(engine) as served:
        version = (await publish(served, world.lora("one", 1))).version
        await refused(served.host.delete("base"), Conflict, "policy_is_active")
        await served.host.activate("run")
        await refused(served.host.delete("base"), Conflict, "policy_is_base")
        await refused(served.host.delete("run"), Conflict, "policy_is_active")
        await served.host.rollback()
        await served.host.delete("run", version.ref.revision)
        await refused(held_by(served, "run"), NotFound, "policy_not_found")
        await refused(served.host.delete("run"), NotFound, "policy_not_found")
        await eventually(lambda: not names(engine))
        assert [info.name for info in served.policies.infos()] == ["base"]


async def test_a_base_is_deleted_after_its_adapters(world):
    async with world.serving() as served:
        await publish(served, world.full("other", 1), name="other", activate=True)
        await publish(served, world.lora("one", 1))
        await served.host.activate("base")
        error = await refused(served.host.delete("other"), Conflict, "policy_is_base")
        assert "run" in error.detail
        await served.host.delete("run")
        await served.host.delete("other")
        await refused(served.host.rollback(), Conflict, "nothing_to_roll_back")


async def test_a_name_goes_with_all_its_versions_or_not_at_all(world):
    async with world.serving() as served:
        one = (await publish(served, world.lora("one", 1), activate=True)).version
        await publish(served, world.lora("two", 2))
        await refused(served.host.delete("run"), Conflict, "policy_is_active")
        assert len(served.host.book.of_name("run")) == 2
        await served.host.activate("base")
        await served.host.delete("run")
        assert one not in served.host.book.history


async def test_deleted_under_a_request_it_stays_until_that_ends(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        await publish(served, world.lora("one", 1))
        async with served.policies.using("run") as use:
            await served.host.delete("run")
            await use.group().sample(asked())
            assert [info.state.value for info in served.policies.infos()] == ["serving", "retiring"]
        await eventually(lambda: not names(engine))
        assert not engine.wrong


# What is refused changes nothing


@pytest.fixture
async def standing(world):
    """Two engines with an active adapter; `before` and `after` compare everything."""
    engines = [world.engine(), world.engine()]
    async with world.serving(*engines) as served:
        await publish(served, world.lora("one", 1), activate=True)
        yield served, engines


def picture(served, engines):
    active = served.host.book.active.ref.revision
    history = [v.ref.revision for v in served.host.book.history]
    return states(served), active, history, [(e.full.revision, len(e.loaded)) for e in engines]


async def test_an_engine_that_refuses_an_adapter(world, standing, monkeypatch):
    served, engines = standing
    before = picture(served, engines)

    async def refuse(adapter):
        raise refusal()

    monkeypatch.setattr(engines[1], "add", refuse)
    error = await refused(publish(served, world.lora("two", 2), activate=True), InvalidRequest, "unusable_policy")
    assert error.errors[0].pointer == "/source"
    assert picture(served, engines) == before


async def test_an_engine_that_refuses_full_weights(world, standing):
    served, engines = standing
    before, was = picture(served, engines), await held_by(served)
    folder = world.full("other", 1)
    for engine in engines:
        engine.refuses = {model_revision(folder): refusal("weights_unavailable")}
    await refused(publish(served, folder, name="other", activate=True), InvalidRequest, "weights_unavailable")
    await eventually(lambda: picture(served, engines) == before)
    assert await held_by(served) == was


async def test_an_adapter_that_gives_no_tokens(world, standing, monkeypatch):
    from rlt_teacher_server.errors import Reason, item_error

    served, engines = standing
    before = picture(served, engines)
    for engine in engines:

        async def sample(request, watch=None, engine=engine, sample=engine.sample):
            if request.adapter and "bad" in request.adapter:
                raise item_error(Reason.non_finite_logits)
            return await sample(request, watch)

        monkeypatch.setattr(engine, "sample", sample)
    error = await refused(publish(served, world.lora("two", 2), name="bad"), InvalidRequest, "unusable_policy")
    assert "not finite" in error.detail
    await eventually(lambda: picture(served, engines) == before)


async def test_no_engine_is_up(world, standing):
    served, engines = standing
    for engine in engines:
        engine.kill()
    await eventually(lambda: not any(each.up for each in served.engines.figures()))
    await refused(publish(served, world.lora("two", 2)), Unavailable, "engine_down")
    await refused(publish(served, world.full("other", 2), name="o", activate=True), Unavailable, "engine_down")
    assert len(served.policies.infos()) == 2


async def test_requests_that_do_not_end(world):
    async with world.serving(drain_s=0.05) as served, served.policies.using(None):
        busy = publish(served, world.full("other", 1), name="other", activate=True)
        await refused(busy, Conflict, "policy_busy")
        assert len(served.policies.infos()) == 1


async def test_another_revision_than_was_expected(world, standing):
    served, engines = standing
    before = picture(served, engines)
    folder = world.lora("two", 2)
    wrong = publish(served, folder, expected_revision="sha256:0123456789abcdef")
    error = await refused(wrong, Conflict, "revision_mismatch")
    assert error.errors[0].pointer == "/expected_revision"
    assert picture(served, engines) == before
    assert (await publish(served, folder, expected_revision=model_revision(folder))).loaded


@pytest.mark.parametrize("kind", list(ModelKind))
async def test_a_folder_that_is_written_into_while_it_is_loaded(world, kind):
    engine = world.engine()
    make = world.lora if kind is ModelKind.lora else world.full
    folder = make("new", 1)
    async with world.serving(engine) as served:
        was = await held_by(served)
        engine.loading = 0.05
        loading = asyncio.create_task(publish(served, folder, activate=True))
        await eventually(lambda: engine.asked["add"] + engine.asked["replace"] > 0)
        make("new", 2)
        error = await refused(loading, Conflict, "revision_mismatch")
        assert error.errors[0].pointer == "/source"
        assert await held_by(served) == was
        assert [info.name for info in served.policies.infos()] == ["base"]
        assert not names(engine)
        assert (await publish(served, folder, activate=True)).loaded


@pytest.mark.parametrize("damage", ["changed", "gone"])
@pytest.mark.parametrize("kind", list(ModelKind))
async def test_a_rollback_to_a_folder_that_is_not_what_it_was(world, kind, damage):
    make = world.lora if kind is ModelKind.lora else world.full
    async with world.serving() as served:
        await publish(served, make("old", 1), activate=True)
        new = (await publish(served, make("new", 2), activate=True)).version.ref.revision
        shutil.rmtree(world.root / "old") if damage == "gone" else make("old", 3)
        error = await refused(served.host.rollback(), Conflict, "revision_mismatch")
        assert ("gone" if damage == "gone" else "no longer") in error.detail
        assert await held_by(served) == new
        assert len(served.host.book.history) == 2


async def test_an_adapter_that_cannot_follow_its_base_puts_all_back(world, monkeypatch):
    engine = world.engine()
    async with world.serving(engine) as served:
        await publish(served, world.lora("one", 1), activate=True)
        other = (await publish(served, world.full("other", 1), name="other", activate=True)).version
        on_other = (await publish(served, world.lora("two", 2), name="two")).version
        before = states(served)
        monkeypatch.setattr(engine, "add", _refusing(engine, "run@"))
        await refused(served.host.rollback(), InvalidRequest, "unusable_policy")
        assert engine.full.revision == other.ref.revision
        assert await held_by(served) == other.ref.revision
        assert await held_by(served, "two") == on_other.ref.revision
        assert states(served) == before


def _refusing(engine, start):
    add = engine.add

    async def refuse(adapter):
        if adapter.name.startswith(start):
            raise refusal()
        await add(adapter)

    return refuse


# Engines that are started anew, callers that go


async def test_an_engine_that_is_started_anew_gets_its_adapters(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        version = (await publish(served, world.lora("one", 1), activate=True)).version
        engine.restart()
        await eventually(lambda: names(engine) == {name_of(version)})
        assert await held_by(served) == version.ref.revision


async def test_an_adapter_whose_folder_changed_is_not_given_to_an_engine_that_is_started_anew(world, base):
    engine = world.engine()
    async with world.serving(engine) as served:
        await publish(served, world.lora("one", 1), activate=True)
        await publish(served, world.lora("two", 2), name="two")
        world.lora("one", 3)
        engine.restart()
        await eventually(lambda: any(info.detail for info in served.policies.infos()))
        error = await refused(held_by(served), Conflict, "policy_not_loaded")
        assert "no longer" in error.detail
        assert "no longer" in served.policies.lacking()
        await eventually(lambda: served.engines.figures()[0].up)
        assert await held_by(served, "base") == base
        assert await held_by(served, "two")
        await served.host.activate("two")
        assert await held_by(served)
        assert served.policies.lacking() is None


async def test_a_caller_who_hangs_up_leaves_no_half_state(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        engine.loading = 0.05
        loading = asyncio.create_task(publish(served, world.lora("one", 1), activate=True))
        await eventually(lambda: engine.asked["add"] > 0)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await eventually(lambda: served.host.book.active.ref.name == "run")
        assert await held_by(served, "run") == served.host.book.active.ref.revision


async def test_changes_are_made_one_after_the_other(world):
    engine = world.engine()
    async with world.serving(engine) as served:
        engine.loading = 0.01
        loads = (publish(served, world.lora(f"step-{i}", i), activate=True) for i in range(6))
        done = await asyncio.gather(*loads)
        assert await held_by(served) == done[-1].version.ref.revision
        assert [v.ref.revision for v in served.host.book.history[:-1]] == [d.version.ref.revision for d in done[-2::-1]]
        await eventually(lambda: len(names(engine)) == 1)


async def test_a_name_may_not_be_a_path(world):
    for name in ("", "../x", "a b", "/x", "x" * 201):
        with pytest.raises(ValueError, match="name"):
            LoadPolicy(name=name, source="x")
