"""What `/explain` does with samples: scored while others are written, tried again, dropped, compared, given up."""

from __future__ import annotations

import asyncio

import pytest
from plugins.fake_engine import eventually
from plugins.scripted import CLOSE, Scene, asked

from rlt_client.errors import InvalidRequest, NotFound, Overloaded, PayloadTooLarge, Unavailable
from rlt_client.schemas.common import GenStatus, ScoreStatus
from rlt_teacher_server.errors import Reason, item_error
from rlt_teacher_server.seeds import derive_seed

LEAK = "As the given solution says, it is 4."


async def test_an_explanation_is_scored_while_its_siblings_are_written():
    """Sample 1 is held back until sample 0 has its score."""
    scored = asyncio.Event()

    async def pace(sample, _written):
        if sample.place == 1:
            await asyncio.wait_for(scored.wait(), 60)

    async def scoring(_text):
        scored.set()

    scene = Scene(pace=pace, scoring=scoring)
    reply = await scene.service.explain(asked(n=2, score=True))
    assert scene.scored == ["Explanation 0", "Explanation 1"]
    assert [each.score.status for each in reply.explanations] == [ScoreStatus.scored] * 2


async def test_the_reply_is_ranked_and_tells_the_seed():
    scene = Scene(script=lambda sample: "abcd"[sample.place] * (5 - sample.place) + CLOSE)
    reply = await scene.service.explain(asked(n=4, score=True))
    assert [each.index for each in reply.explanations] == [3, 2, 1, 0]
    assert reply.best == 3
    assert reply.seed == 7
    assert [each.seed for each in reply.explanations] == [derive_seed(7, place) for place in (3, 2, 1, 0)]
    assert all(each.policy == reply.policy for each in reply.explanations)


async def test_a_seed_that_was_drawn_is_told_and_repeats_the_request():
    scene = Scene()
    first = await scene.service.explain(asked(seed=None, n=2))
    again = await scene.service.explain(asked(seed=first.seed, n=2))
    assert [each.seed for each in first.explanations] == [each.seed for each in again.explanations]


# Truncated samples


async def test_what_was_cut_off_is_tried_once_more_with_its_seed_and_twice_the_budget():
    scene = Scene(script=lambda sample: "one two three four five six seven eight nine ten eleven twelve" + CLOSE)
    full = len(scene.ids(scene.script(None)))
    first = full * 2 // 3
    reply = await scene.service.explain(asked(max_tokens=first, incomplete="retry"))
    [explanation] = reply.explanations
    assert explanation.gen_status is GenStatus.complete
    assert explanation.flags == ["retried"]
    assert [sample.request.max_tokens for sample in scene.asked] == [first, 2 * first]
    assert len({sample.request.seed for sample in scene.asked}) == 1
    assert explanation.usage.completion_tokens == reply.usage.completion_tokens == first + full
    assert scene.counted('rlt_teacher_retries_total{gen_status="complete"}') == 1
    assert scene.counted('rlt_teacher_flags_total{flag="retried"}') == 1


async def test_what_is_still_cut_off_then_is_kept():
    scene = Scene(script=lambda sample: "".join(f"step {i}, " for i in range(100)) + CLOSE)
    [explanation] = (await scene.service.explain(asked(max_tokens=5, incomplete="retry"))).explanations
    assert explanation.gen_status is GenStatus.truncated
    assert explanation.text is None
    assert explanation.flags == ["retried"]
    assert explanation.usage.completion_tokens == 5 + 10
    assert len(scene.asked) == 2


async def test_the_second_budget_can_be_named_and_is_cut_to_the_context():
    scene = Scene(script=lambda sample: "".join(f"step {i}, " for i in range(500)), max_model_len=300)
    for named, used in ((70, 70), (100_000, 300)):
        scene.asked.clear()
        reply = await scene.service.explain(asked(max_tokens=5, incomplete="retry", retry_max_tokens=named))
        assert scene.asked[1].request.max_tokens == min(used, 300 - reply.usage.prompt_tokens)


async def test_there_is_no_second_try_without_room_for_one():
    scene = Scene(script=lambda sample: "".join(f"step {i}, " for i in range(500)), budget=10_000)
    [explanation] = (await scene.service.explain(asked(incomplete="retry"))).explanations
    assert explanation.gen_status is GenStatus.truncated
    assert explanation.flags == []
    assert len(scene.asked) == 1


@pytest.mark.parametrize("options", [{"max_tokens": 5}, {"max_tokens": 5, "incomplete": "drop"}])
async def test_nothing_is_tried_again_unless_asked_for(options):
    scene = Scene(script=lambda sample: "word, " * 50)
    await scene.service.explain(asked(**options))
    assert len(scene.asked) == 1


async def test_what_goes_round_in_circles_is_not_tried_again():
    scene = Scene(script=lambda sample: "so " * 2000, budget=200)
    [explanation] = (await scene.service.explain(asked(max_tokens=150, incomplete="retry"))).explanations
    assert explanation.gen_status is GenStatus.truncated
    assert "repetition" in explanation.flags
    assert len(scene.asked) == 1


async def test_what_ended_by_itself_is_not_tried_again():
    scene = Scene(script=lambda sample: "I give up.")
    [explanation] = (await scene.service.explain(asked(incomplete="retry"))).explanations
    assert explanation.gen_status is GenStatus.malformed
    assert len(scene.asked) == 1


async def test_a_second_try_that_fails_leaves_the_first():
    tries = []

    def script(_sample):
        tries.append(1)
        return "".join(f"step {i}, " for i in range(9)) if len(tries) == 1 else item_error(Reason.engine_failed)

    scene = Scene(script=script)
    [explanation] = (await scene.service.explain(asked(max_tokens=5, incomplete="retry", score=True))).explanations
    assert explanation.gen_status is GenStatus.truncated
    assert explanation.error is None
    assert explanation.completion
    assert explanation.usage.completion_tokens == 5
    assert explanation.score.status is ScoreStatus.scored


async def test_a_second_budget_that_is_no_larger_is_refused():
    scene = Scene(budget=100)
    with pytest.raises(InvalidRequest) as caught:
        await scene.service.explain(asked(incomplete="retry", retry_max_tokens=100))
    assert caught.value.type == "retry_too_small"
    assert caught.value.errors[0].pointer == "/retry_max_tokens"


# Leaving out


async def test_what_will_be_dropped_is_not_scored():
    texts = [f"Two and two.{CLOSE}", LEAK + CLOSE, "cut off"]
    scene = Scene(script=lambda sample: texts[sample.place])
    reply = await scene.service.explain(asked(n=3, score=True, incomplete="drop", drop_leaks=True))
    assert scene.scored == ["Two and two."]
    assert [each.index for each in reply.explanations] == [0]
    assert reply.dropped.model_dump() == {"incomplete": 1, "leaks": 1, "min_reward": 0, "unscored": 0, "not_best": 0}
    assert scene.counted('rlt_teacher_dropped_total{reason="leaks"}') == 1
    assert scene.counted('rlt_teacher_leaks_total{pattern="given-solution"}') == 1


async def test_usage_counts_what_was_dropped():
    scene = Scene()
    reply = await scene.service.explain(asked(n=2, score=True, min_reward=100.0))
    assert reply.explanations == []
    assert reply.best is None
    assert reply.dropped.min_reward == 2
    assert reply.usage.completion_tokens == 2 * len(scene.ids(f"Explanation 0{CLOSE}"))


# Several policies


async def test_two_policies_on_one_question_get_the_same_seeds():
    def script(sample):
        length = {"base": 3, "new": 2}[sample.policy] if sample.place else {"base": 1, "new": 9}[sample.policy]
        return "a" * length + CLOSE

    scene = Scene(script=script)
    reply = await scene.service.explain(asked(n=3, score=True, policies=["base", "new"]))
    by_index = sorted(reply.explanations, key=lambda each: each.index)
    assert [each.policy.name for each in by_index] == ["base"] * 3 + ["new"] * 3
    assert [each.seed for each in by_index[:3]] == [each.seed for each in by_index[3:]]
    assert [(each.policy.name, each.wins, each.best) for each in reply.comparison] == [("base", 1, 0), ("new", 2, 4)]
    assert reply.best == 0
    assert reply.policy.name == "base"
    assert scene.held == []


async def test_a_comparison_counts_what_was_dropped():
    texts = {"base": "Two and two.", "new": LEAK}
    scene = Scene(script=lambda sample: texts[sample.policy] + CLOSE)
    options = {"score": True, "policies": ["base", "new"], "drop_leaks": True, "keep": "best"}
    reply = await scene.service.explain(asked(n=2, **options))
    assert [each.index for each in reply.explanations] == [0]
    assert reply.dropped.leaks == 2
    assert [(each.samples, each.scored, each.leaking) for each in reply.comparison] == [(2, 2, 0), (2, 2, 2)]


async def test_one_unknown_policy_fails_the_request_before_anything_is_sampled():
    scene = Scene()
    with pytest.raises(NotFound) as caught:
        await scene.service.explain(asked(n=3, policies=["new", "nope"]))
    assert caught.value.errors[0].pointer == "/policies/1"
    assert scene.asked == scene.held == []
    assert scene.admission.inside == 0


async def test_without_policies_nothing_is_compared():
    assert (await Scene().service.explain(asked(score=True))).comparison is None


# What fails


async def test_an_engine_that_is_down_for_one_sample_costs_that_one():
    down = Unavailable("gone", type="engine_down")
    scene = Scene(script=lambda sample: down if sample.place == 0 else f"Fine.{CLOSE}")
    reply = await scene.service.explain(asked(n=2))
    assert [each.gen_status for each in reply.explanations] == [GenStatus.engine_error, GenStatus.complete]
    assert reply.explanations[0].error.type == "engine_down"


async def test_an_engine_that_is_down_for_all_fails_the_request():
    scene = Scene(script=lambda sample: Unavailable("gone", type="engine_down", retry_after=3))
    with pytest.raises(Unavailable) as caught:
        await scene.service.explain(asked(n=2))
    assert caught.value.retry_after == 3


async def test_what_the_reward_server_refuses_ends_the_request_and_what_it_samples():
    refused = InvalidRequest("no such spec", type="unsupported_kl")

    async def pace(sample, _written):
        await asyncio.sleep(60 if sample.place else 0)

    scene = Scene(pace=pace, reward=lambda text: refused)
    with pytest.raises(InvalidRequest, match="unsupported_kl"):
        await asyncio.wait_for(scene.service.explain(asked(n=3, score=True)), 60)
    assert scene.inside == scene.held == []


async def test_a_caller_that_is_cancelled_leaves_nothing_behind():
    scene = Scene(pace=lambda sample, written: asyncio.sleep(60))
    work = asyncio.create_task(scene.service.explain(asked(n=4, policies=["base", "new"])))
    await eventually(lambda: len(scene.inside) == 8)
    assert scene.admission.inside == 8
    work.cancel()
    await asyncio.wait([work])
    assert scene.inside == scene.held == []
    assert scene.admission.inside == 0


async def test_more_samples_than_fit_at_all_and_more_than_fit_now():
    scene = Scene(capacity=8, pace=lambda sample, written: asyncio.sleep(60))
    with pytest.raises(PayloadTooLarge) as caught:
        await scene.service.explain(asked(n=5, policies=["base", "new"]))
    assert caught.value.type == "too_many_samples"
    work = asyncio.create_task(scene.service.explain(asked(n=4)))
    await eventually(lambda: bool(scene.inside))
    with pytest.raises(Overloaded):
        await scene.service.explain(asked(n=5))
    work.cancel()
