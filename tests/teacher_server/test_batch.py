"""`POST /explain/batch`: many problems, each on its own."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from plugins.fake_engine import eventually
from plugins.scripted import CLOSE, Scene

from rlt_client.errors import InvalidRequest, NotFound, Overloaded, PayloadTooLarge, Unavailable
from rlt_client.schemas.common import GenStatus
from rlt_client.schemas.explain import ExplainBatchRequest
from rlt_teacher_server.errors import Reason, item_error
from rlt_teacher_server.seeds import derive_seed

DOWN = Unavailable("gone", type="engine_down", retry_after=3)


def batch(*problems, **options):
    return ExplainBatchRequest.model_validate({"problems": list(problems)} | options)


def problem(question="Two plus two?", **given):
    return {"question": question, "answer": "4"} | given


def types(reply):
    return [item.error.type if item.error else None for item in reply.items]


async def test_replies_keep_the_order_and_the_ids():
    """The earlier a problem stands, the later it is done."""

    async def pace(sample, _written):
        await asyncio.sleep(0.02 * (3 - sample.prompt.count("slow")))

    scene = Scene(pace=pace)
    reply = await scene.service.batch(batch(*(problem("slow " * i + "?", id=f"p{i}", seed=i) for i in range(3))))
    assert [(item.id, item.index) for item in reply.items] == [("p0", 0), ("p1", 1), ("p2", 2)]
    assert [item.result.seed for item in reply.items] == [0, 1, 2]
    assert (reply.succeeded, reply.failed) == (3, 0)
    assert reply.policy.name == "base"


async def test_problems_are_done_at_the_same_time():
    scene = Scene(pace=lambda *_: asyncio.sleep(60))
    work = asyncio.create_task(scene.service.batch(batch(*[problem()] * 5, n=2)))
    await eventually(lambda: len(scene.inside) == 10)
    assert scene.admission.inside == 10
    assert scene.held == ["base"], "the policy is held once"
    work.cancel()
    await asyncio.wait([work])
    assert scene.inside == scene.held == []
    assert scene.admission.inside == 0


async def test_seeds_follow_from_the_batch_s_and_the_place():
    reply = await Scene().service.batch(batch(problem(), problem(seed=11), problem(), n=2, seed=5))
    assert [item.result.seed for item in reply.items] == [derive_seed(5, 0), 11, derive_seed(5, 2)]
    seeds = [each.seed for each in reply.items[2].result.explanations]
    assert seeds == [derive_seed(derive_seed(5, 2), place) for place in range(2)]


async def test_a_problem_is_what_it_would_be_alone():
    from rlt_client.schemas.explain import ExplainRequest

    options = {"n": 3, "score": True, "keep": "best", "seed": 9}
    scene = Scene(script=lambda sample: "a" * (sample.request.seed % 7) + CLOSE)
    reply = await scene.service.batch(batch(problem(seed=9), **options))
    alone = await scene.service.explain(ExplainRequest.model_validate(problem() | options))
    assert reply.items[0].result.model_dump(exclude={"timing"}) == alone.model_dump(exclude={"timing"})


async def test_what_is_wrong_with_one_problem_touches_no_other():
    def script(sample):
        if "Poison" in sample.prompt:
            return item_error(Reason.engine_failed, "it broke")
        return DOWN if "Unlucky" in sample.prompt else f"Fine.{CLOSE}"

    scene = Scene(script=script)
    questions = ["One?", " \n", "Poison?", "word " * 500, "", "Unlucky?", "Two?"]
    reply = await scene.service.batch(batch(*map(problem, questions), n=2))
    wrong = ["empty_question", "engine_failed", "context_overflow", "empty_question", "engine_down"]
    assert types(reply) == [None, *wrong, None]
    assert (reply.succeeded, reply.failed) == (2, 5)
    assert [item.result is None for item in reply.items] == [False, *[True] * 5, False]
    assert reply.items[1].error.errors[0].pointer == "/problems/1/question"
    fine = reply.items[0].result.usage.completion_tokens
    assert reply.usage.completion_tokens == 2 * fine
    assert reply.usage.prompt_tokens == sum(reply.items[i].result.usage.prompt_tokens for i in (0, 6))


async def test_a_problem_with_one_sample_of_two_has_a_result():
    tries = []

    def script(_sample):
        tries.append(1)
        return item_error(Reason.engine_failed) if len(tries) == 1 else f"Fine.{CLOSE}"

    [item] = (await Scene(script=script).service.batch(batch(problem(), n=2))).items
    statuses = [each.gen_status for each in item.result.explanations]
    assert sorted(statuses) == [GenStatus.complete, GenStatus.engine_error]


async def test_a_problem_whose_explanations_were_all_dropped_has_a_result():
    [item] = (await Scene(script=lambda _: "cut").service.batch(batch(problem(), incomplete="drop"))).items
    assert item.result.explanations == []
    assert item.result.dropped.incomplete == 1


async def test_all_problems_may_fail():
    reply = await Scene().service.batch(batch(problem(" "), problem("\t")))
    assert (reply.succeeded, reply.failed) == (0, 2)
    assert reply.usage.completion_tokens == 0


async def test_an_engine_that_is_down_for_all_is_worth_asking_again():
    scene = Scene(script=lambda _: DOWN)
    with pytest.raises(Unavailable) as caught:
        await scene.service.batch(batch(problem(), problem(" ")))
    assert caught.value.retry_after == 3


async def test_several_policies_are_compared_on_each_problem():
    scene = Scene(script=lambda sample: ("a" if sample.policy == "new" else "aa") + CLOSE)
    reply = await scene.service.batch(batch(problem(), problem("Three?"), score=True, policies=["base", "new"]))
    for item in reply.items:
        assert [(summary.policy.name, summary.wins) for summary in item.result.comparison] == [("base", 0), ("new", 1)]


# What is wrong with the whole request


@pytest.mark.parametrize(
    ("options", "error", "type"),
    [
        ({"policy": "nope"}, NotFound, "policy_not_found"),
        ({"format": "nope"}, NotFound, "unknown_format"),
        ({"temperature": 0.001}, InvalidRequest, "temperature_too_low"),
        ({"n": 51}, PayloadTooLarge, "too_many_samples"),
        ({"n": 26, "policies": ["base", "new"]}, PayloadTooLarge, "too_many_samples"),
    ],
)
async def test_what_is_wrong_with_the_request_fails_it(options, error, type):
    scene = Scene(capacity=100)
    with pytest.raises(error) as caught:
        await scene.service.batch(batch(problem(), problem(), **options))
    assert caught.value.type == type
    assert scene.asked == scene.held == []


async def test_no_room_now():
    scene = Scene(capacity=10)
    with scene.admission.admit(5), pytest.raises(Overloaded):
        await scene.service.batch(batch(*[problem()] * 6))


async def test_a_reward_that_is_refused_fails_the_request():
    scene = Scene(reward=lambda _: InvalidRequest("no", type="unsupported_kl"))
    with pytest.raises(InvalidRequest, match="unsupported_kl"):
        await scene.service.batch(batch(problem(), problem(), score=True))
    assert scene.inside == scene.held == []


# Over HTTP


def test_a_batch_on_the_real_engine_and_reward_server(teacher, problem):
    unknown = {"question": "What is it?", "answer": "17"}
    body = {"problems": [problem | {"id": "a"}, unknown, problem], "n": 2, "score": True, "seed": 3, "max_tokens": 27}
    response = teacher.post("/explain/batch", json=body)
    assert response.status_code == 200, response.text
    reply = response.json()
    assert [item["error"] and item["error"]["type"] for item in reply["items"]] == [None, "untokenizable", None]
    assert reply["items"][0]["id"] == "a"
    alone = teacher.post(
        "/explain", json=problem | {"n": 2, "score": True, "seed": derive_seed(3, 2), "max_tokens": 27}
    )
    again, first = alone.json(), reply["items"][2]["result"]
    assert [each["completion"] for each in first["explanations"]] == [
        each["completion"] for each in again["explanations"]
    ]
    assert reply["timing"]["engine_ms"] > 0


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"problems": []}, "/problems"),
        ({"problems": [{"question": "Q 1"}]}, "/problems/0/answer"),
        ({"problems": [{"question": "Q 1", "answer": "1", "n": 3}]}, "/problems/0/n"),
        ({"stream": True}, "/stream"),
        ({"problems": [{"question": "Q 1", "answer": "1"}] * 1025}, "/problems"),
    ],
)
def test_wrong_fields(teacher, problem, wrong, pointer):
    response = teacher.post("/explain/batch", json={"problems": [problem]} | wrong)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer


async def test_a_caller_that_hangs_up_stops_all_problems(teacher, teacher_url, problem):
    body = {"problems": [problem] * 500, "n": 8, "max_tokens": 240, "temperature": 2.0}
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{teacher_url}/explain/batch", json=body, timeout=httpx.Timeout(60, read=0.5))
        await eventually(lambda: inside(teacher) == 0, seconds=20)


def inside(teacher):
    [line] = [
        line for line in teacher.get("/metrics").text.splitlines() if line.startswith("rlt_teacher_samples_inside ")
    ]
    return float(line.split()[1])
