"""The events of a streamed `/explain`: their order, what is put together, what a slow reader gets, how they end."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from contextlib import aclosing

import pytest
from plugins.fake_engine import eventually
from plugins.scripted import CLOSE, Scene, asked

from rlt_client.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from rlt_client.schemas.explain import Delta, Done, Failed, Finished, Restarted, Scored, Started
from rlt_client.testing import make_score
from rlt_teacher_server.explain.events import Mailbox, interval

HELD = "\n\n"  # the format's: the prompt's end, which belongs to the explanation


async def events_of(scene, **given):
    async with aclosing(await scene.service.stream(asked(**given))) as stream:
        return [event async for event in stream]


def text_of(events, index):
    return "".join(event.text for event in events if isinstance(event, Delta) and event.index == index)


def named(events, index=None):
    """Names in order, of one sample; deltas that follow each other as one."""
    names = []
    for event in events:
        own = event.explanation.index if isinstance(event, Finished) else getattr(event, "index", None)
        if index in (None, own) and not (names and names[-1] == event.event == "delta"):
            names.append(event.event)
    return names


async def slowly(_sample, _written):
    await asyncio.sleep(0.004)


async def test_from_started_to_done():
    scene = Scene(pace=slowly)
    events = await events_of(scene, n=3, score=True, policies=["base", "new"])
    started, done = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(done, Done)
    assert (started.samples, started.seed, [each.name for each in started.policies]) == (6, 7, ["base", "new"])
    assert started.prompt_tokens == done.response.usage.prompt_tokens
    for index in range(6):
        assert named(events, index) == ["delta", "finished", "scored"]
        assert text_of(events, index) == f"{HELD}Explanation {index % 3}"
    tokens = sum(event.tokens for event in events if isinstance(event, Delta))
    assert tokens == done.response.usage.completion_tokens


async def test_done_is_what_the_call_would_have_answered():
    scene = Scene()
    options = {"n": 4, "score": True, "min_reward": -14.0, "keep": "best"}
    *_, done = await events_of(scene, **options)
    plain = await scene.service.explain(asked(**options))
    assert done.response.model_dump(exclude={"timing"}) == plain.model_dump(exclude={"timing"})


async def test_finished_comes_without_the_score_even_to_a_late_reader():
    scene = Scene()
    stream = await scene.service.stream(asked(score=True))
    await eventually(lambda: scene.admission.inside == 0)
    async with aclosing(stream):
        events = [event async for event in stream]
    [finished] = [event for event in events if isinstance(event, Finished)]
    assert finished.explanation.score is None
    assert named(events) == ["started", "delta", "finished", "scored", "done"]


async def test_samples_that_are_dropped_are_told_as_they_come():
    events = await events_of(Scene(script=lambda _: "cut off"), incomplete="drop")
    assert named(events) == ["started", "delta", "finished", "done"]
    assert events[-1].response.explanations == []


async def test_a_second_try_begins_with_restarted_and_tells_its_own_text():
    text = "".join(f"step {i}, " for i in range(20))
    scene = Scene(script=lambda _: text + CLOSE, pace=slowly)
    events = await events_of(scene, max_tokens=40, incomplete="retry", retry_max_tokens=200)
    assert named(events, 0) == ["delta", "restarted", "delta", "finished"]
    [restarted] = [event for event in events if isinstance(event, Restarted)]
    assert restarted.reason == "truncated"
    assert text_of(events[events.index(restarted) :], 0) == HELD + text


async def test_a_sample_whose_engine_died_begins_anew():
    scene = Scene(restarts={1: 3}, pace=slowly)
    events = await events_of(scene, n=2)
    [restarted] = [event for event in events if isinstance(event, Restarted)]
    assert (restarted.index, restarted.reason) == (1, "engine_down")
    assert text_of(events[events.index(restarted) :], 1) == f"{HELD}Explanation 1"
    assert named(events, 0) == ["delta", "finished"]


async def test_what_was_not_taken_of_a_void_try_is_never_told():
    scene = Scene(restarts={0: 3})
    stream = await scene.service.stream(asked())
    await eventually(lambda: scene.admission.inside == 0)
    async with aclosing(stream):
        events = [event async for event in stream]
    assert named(events) == ["started", "restarted", "delta", "finished", "done"]


# Together


async def test_tokens_of_all_samples_that_come_close_to_each_other_are_taken_together():
    """40 samples write a token every 4 ms: where none has its first token or its end, at most one take in 50 ms."""
    text = "".join(f"step {i}, " for i in range(25))[:-2]
    scene = Scene(script=lambda _: text + CLOSE, pace=slowly)
    takes = []
    began = asyncio.get_running_loop().time()
    async with aclosing(await scene.service.stream(asked(n=40, max_tokens=300))) as stream:
        while not stream.ended:
            takes.append(await stream.take())
    seconds = asyncio.get_running_loop().time() - began
    begun = [{event.index for event in take if isinstance(event, Delta)} for take in takes]
    only_more = [
        take
        for place, take in enumerate(takes)
        if all(isinstance(event, Delta) for event in take) and begun[place] <= set().union(*begun[:place])
    ]
    assert 1 <= len(only_more) <= 1 + seconds / 0.05
    assert max(len(take) for take in only_more) == 40
    assert [text_of([event for take in takes for event in take], index) for index in range(40)] == [HELD + text] * 40


async def test_the_first_token_does_not_wait_for_company():
    written = asyncio.Event()

    async def pace(_sample, count):
        if count == 1:
            await written.wait()

    scene = Scene(pace=pace)
    async with aclosing(await scene.service.stream(asked())) as stream:
        [started] = await stream.take()
        [delta] = await asyncio.wait_for(stream.take(), 60)
        written.set()
    assert isinstance(started, Started)
    assert delta.tokens == 1
    assert scene.counted("rlt_teacher_first_token_seconds_count") == 1


class Plain:
    def feed(self, token_ids):
        return "".join(map(chr, token_ids))

    def end(self):
        return ""


async def test_what_waits_for_a_slow_reader_does_not_grow_with_the_number_of_tokens():
    """100 samples × 20,000 tokens: 100 deltas, not two million."""
    mailbox = Mailbox(Plain)
    watches = [mailbox.watch(index) for index in range(100)]
    tracemalloc.start()
    for _ in range(20_000):
        for watch in watches:
            watch([97])
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100 * 20_000 * 9.5, "8 bytes a token of a list, and no object a token"
    events = await mailbox.take()
    assert [(event.index, event.tokens, len(event.text)) for event in events] == [
        (i, 20_000, 20_000) for i in range(100)
    ]


def test_many_streams_are_written_to_less_often():
    """500 streams at 50 ms would be 10,000 writes a second."""
    assert [interval(streams) for streams in (1, 62, 500)] == [0.05, 0.05, 0.4]


async def test_an_empty_take_says_that_nothing_happened():
    mailbox = Mailbox(Plain)
    assert await mailbox.take(0.01) == []
    mailbox.scored(3, make_score())
    [scored] = await mailbox.take(0.01)
    assert isinstance(scored, Scored)


# How it ends


@pytest.mark.parametrize(
    ("request_", "error"),
    [({"question": " "}, InvalidRequest), ({"policy": "nope"}, NotFound), ({"n": 9}, Overloaded)],
)
async def test_what_is_refused_before_anything_is_sampled_is_raised(request_, error):
    scene = Scene(capacity=10)
    with scene.admission.admit(5), pytest.raises(error):
        await scene.service.stream(asked(**request_))
    assert scene.asked == scene.held == []
    assert scene.counted("rlt_teacher_streams ") == 0


async def test_what_nobody_expected_before_the_start_is_raised_as_it_is():
    scene = Scene()
    scene.limits = None
    with pytest.raises(TypeError):
        await scene.service.stream(asked())


async def test_an_engine_that_is_down_for_all_is_the_last_event():
    scene = Scene(script=lambda _: Unavailable("gone", type="engine_down"))
    events = await events_of(scene, n=2)
    assert named(events) == ["started", "finished", "finished", "failed"]
    assert isinstance(events[-1], Failed)
    assert (events[-1].problem.type, events[-1].problem.status) == ("engine_down", 503)


async def test_what_nobody_expected_ends_the_stream_and_says_nothing(caplog):
    def script(_sample):
        raise KeyError("secret")

    [started, failed] = await events_of(Scene(script=script))
    assert isinstance(started, Started)
    assert (failed.problem.type, failed.problem.status) == ("internal_error", 500)
    assert "secret" not in failed.model_dump_json()
    assert "secret" in caplog.text


async def test_a_reader_that_closes_stops_everything():
    async def pace(_sample, written):
        await asyncio.sleep(0 if written < 2 else 60)

    scene = Scene(pace=pace)
    stream = await scene.service.stream(asked(n=5, policies=["base", "new"]))
    async with aclosing(stream):
        async for event in stream:
            if isinstance(event, Delta):
                break
        assert scene.counted("rlt_teacher_streams ") == 1
    assert scene.inside == scene.held == []
    assert scene.admission.inside == 0
    assert scene.counted("rlt_teacher_streams ") == 0
    await stream.aclose()
    assert scene.counted("rlt_teacher_streams ") == 0


async def test_a_caller_that_is_cancelled_while_it_opens_a_stream_leaves_nothing():
    scene = Scene()
    scene.limits = asyncio.Event().wait
    opening = asyncio.create_task(scene.service.stream(asked()))
    await asyncio.sleep(0.05)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    assert scene.counted("rlt_teacher_streams ") == 0


async def test_a_take_after_the_end_gives_nothing():
    stream = await Scene().service.stream(asked())
    async with aclosing(stream):
        assert named([event async for event in stream])[-1] == "done"
        assert await stream.take() == []
        assert [event async for event in stream] == []
