"""What a server knows of its policies when it is started again."""

from __future__ import annotations

import logging
import shutil

import pytest
from plugins.fake_engine import eventually, refusal
from plugins.policy_world import World, held_by, name_of, publish

from rlt_client.errors import Conflict, InternalError
from rlt_teacher_server.policies.state import UnusableState


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "models")


@pytest.fixture
def state(tmp_path):
    return tmp_path / "policies.json"


@pytest.fixture
def base(world):
    return world.model.ref.revision


def known(served):
    return [(v.ref.name, v.ref.revision, v.wanted) for v in served.host.book.versions]


async def loaded(served):
    await eventually(lambda: not served.policies.missing())


async def test_everything_comes_back(world, state):
    """An active adapter on full weights, another adapter there, what was active before, and what is only known."""
    async with world.serving(state=state) as served:
        await publish(served, world.lora("early", 1), name="early", activate=True)
        await publish(served, world.full("other", 1), name="other", activate=True)
        await publish(served, world.lora("one", 1), name="one", activate=True)
        await publish(served, world.lora("two", 2), name="two")
        await publish(served, world.full("spare", 3), name="spare")
        before, active = known(served), await held_by(served)
        history = [v.ref for v in served.host.book.history]
    async with world.serving(world.engine(), state=state) as served:
        await loaded(served)
        assert known(served) == before
        assert [v.ref for v in served.host.book.history] == history
        assert await held_by(served) == await held_by(served, "one") == active
        assert await held_by(served, "two")
        assert (await served.host.rollback()).ref.name == "other"
        assert (await served.host.rollback()).ref.name == "early"
        assert await held_by(served) == await held_by(served, "early")


async def test_an_engine_that_was_not_started_anew_is_left_as_it_is(world, state):
    engine = world.engine()
    async with world.serving(engine, state=state) as served:
        await publish(served, world.full("other", 1), name="other", activate=True)
        name = name_of((await publish(served, world.lora("one", 1), activate=True)).version)
    replaced = engine.asked["replace"]
    async with world.serving(engine, state=state) as served:
        await loaded(served)
        assert await held_by(served)
        assert set(engine.loaded) == {name}
        assert engine.asked["replace"] == replaced


async def test_engines_that_come_later(world, state):
    engine = world.engine()
    async with world.serving(engine, state=state) as served:
        active = (await publish(served, world.lora("one", 1), activate=True)).version.ref.revision
    engine.kill()
    async with world.serving(engine, state=state, start_s=0.05) as served:
        assert served.host.book.active.ref.revision == active
        engine.start()
        await loaded(served)
        assert await held_by(served) == active


@pytest.mark.parametrize("damage", ["gone", "changed"])
async def test_an_active_policy_that_is_not_what_it_was(world, state, base, damage, caplog):
    async with world.serving(state=state) as served:
        await publish(served, world.lora("kept", 1), name="kept")
        lost = (await publish(served, world.lora("lost", 2), name="lost", activate=True)).version.ref.revision
    shutil.rmtree(world.root / "lost") if damage == "gone" else world.lora("lost", 3)
    with caplog.at_level(logging.WARNING):
        async with world.serving(state=state) as served:
            await loaded(served)
            assert await held_by(served) == base
            assert await held_by(served, "kept")
            [info] = [info for info in served.policies.infos() if info.name == "lost"]
            assert (info.state.value, info.revision) == ("known", lost)
            assert info.detail
            with pytest.raises(Conflict, match=r"policy_not_loaded: .*(gone|other contents|not a folder)"):
                await held_by(served, "lost")
            shutil.rmtree(world.root / "lost", ignore_errors=True)
            world.lora("lost", 2)
            assert (await served.host.rollback()).ref.revision == lost, "the disk was back"
            assert await held_by(served) == lost
    assert "the active policy cannot be restored" in caplog.text


async def test_an_active_policy_that_the_engines_refuse_now(world, state, base, caplog):
    async with world.serving(state=state) as served:
        active = (await publish(served, world.lora("one", 1), activate=True)).version
        name = name_of(active)
    engine = world.engine()
    engine.refuses = {name: refusal("adapters_unavailable")}
    async with world.serving(engine, state=state) as served:
        await loaded(served)
        assert await held_by(served) == base
        assert "cannot be restored" in caplog.text


async def test_another_model(world, state, tmp_path, caplog):
    """The new one is served; what fits it is known, and what was active is a rollback away."""
    async with world.serving(state=state) as served:
        await publish(served, world.full("other", 1), name="other")
        active = (await publish(served, world.lora("one", 1), name="one", activate=True)).version.ref.revision
    again = World(tmp_path / "new", base=9, name="newer")
    again.root = tmp_path
    async with again.serving(state=state) as served:
        assert await held_by(served) == again.model.ref.revision
        assert {v.ref.name for v in served.host.book.versions} == {"base", "newer", "other", "one"}
        assert (await served.host.rollback()).ref.revision == await held_by(served) == active


async def test_another_model_of_another_shape(world, state, tmp_path, caplog):
    async with world.serving(state=state) as served:
        await publish(served, world.lora("one", 1), name="one", activate=True)
        await publish(served, world.full("other", 1), name="other")
    again = World(tmp_path / "new", name="newer", width=8)
    async with again.serving(state=state) as served:
        assert [v.ref.name for v in served.host.book.versions] == ["newer"]
        assert await held_by(served) == again.model.ref.revision
    assert "its base is not served any more" in caplog.text


async def test_the_order_of_names_is_kept(world, state):
    async with world.serving(state=state) as served:
        one = (await publish(served, world.lora("one", 1), activate=True)).version.ref.revision
        two = (await publish(served, world.lora("two", 2), activate=True)).version.ref.revision
        await publish(served, world.lora("one", 1))
    async with world.serving(state=state) as served:
        await loaded(served)
        assert await held_by(served, "run") == one
        assert await held_by(served) == two


# The file


async def test_it_is_written_whole(world, state, monkeypatch):
    async with world.serving(state=state) as served:
        await publish(served, world.lora("one", 1))
        before = state.read_text()
        monkeypatch.setattr("os.fsync", _full_disk)
        with pytest.raises(InternalError, match=r"state_not_saved.*No space left"):
            await publish(served, world.lora("two", 2), name="two")
        assert state.read_text() == before
        assert [path.name for path in state.parent.iterdir() if path.is_file()] == [state.name]
        assert await held_by(served, "two"), "it is in effect"
        monkeypatch.undo()
        await served.host.activate("two")
        assert "two" in state.read_text()


def _full_disk(_):
    raise OSError(28, "No space left on device")


async def test_what_failed_is_not_remembered(world, state):
    async with world.serving(state=state) as served:
        before = state.read_text()
        with pytest.raises(Conflict):
            await publish(served, world.lora("one", 1), expected_revision="sha256:0")
        assert state.read_text() == before


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 1}', '{"format": 2, "model": {}}', "\xff"],
    ids=["empty", "cut off", "a list", "fields missing", "a later format", "no text"],
)
async def test_a_file_that_is_not_ours(world, state, content):
    state.write_text(content, encoding="latin-1")
    with pytest.raises(UnusableState, match=rf"{state}.* is no file of policies .*move it away") as caught:
        async with world.serving(state=state):
            pass
    assert "\n" not in str(caught.value)
    assert state.read_text(encoding="latin-1") == content


async def test_a_place_that_cannot_be_written(world, tmp_path):
    with pytest.raises(UnusableState, match="cannot be written"):
        async with world.serving(state=tmp_path / "nowhere" / "policies.json"):
            pass


async def test_a_server_without_a_file_begins_with_the_model(world, base):
    async with world.serving() as served:
        await publish(served, world.lora("one", 1), activate=True)
    async with world.serving() as served:
        assert [v.ref.name for v in served.host.book.versions] == ["base"]
        assert await held_by(served) == base
