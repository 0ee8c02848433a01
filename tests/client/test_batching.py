"""The coalescing core and the reward client around it, against `FakePlatform`."""

import asyncio
import threading

import httpx
import pytest

from rlt_client import AsyncRewardClient, RewardClient, RewardItem
from rlt_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ItemError,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    ProtocolError,
    TransportError,
    Unauthorized,
    Unavailable,
)
from rlt_client.schemas.reward import Preset, RewardRequest, TeacherTokens
from rlt_client.testing import FakePlatform, hashed_reward


def item(question: str, explanation: str = "because") -> RewardItem:
    return RewardItem(question=question, answer="4", explanation=explanation)


def client(fake: FakePlatform, **options) -> AsyncRewardClient:
    return AsyncRewardClient("http://fake", transport=fake.transport(), **options)


async def test_calls_made_together_share_one_request_and_get_their_own_score():
    fake = FakePlatform()
    items = [item(f"q{i}") for i in range(20)]
    async with client(fake) as reward:
        scores = await asyncio.gather(*(reward.score(i) for i in items))
    assert [len(r.items) for r in fake.requests] == [20]
    assert [s.reward for s in scores] == [hashed_reward(i) for i in items]


async def test_a_batch_never_exceeds_its_items():
    fake = FakePlatform()
    async with client(fake, max_items=8) as reward:
        await asyncio.gather(*(reward.score(item(f"q{i}")) for i in range(30)))
    assert sum(len(r.items) for r in fake.requests) == 30
    assert max(len(r.items) for r in fake.requests) <= 8


async def test_a_batch_never_exceeds_its_tokens():
    fake = FakePlatform()
    long = "x" * 3000  # about 1000 tokens
    async with client(fake, max_tokens=2500) as reward:
        await asyncio.gather(*(reward.score(item(f"q{i}", long)) for i in range(6)))
    assert [len(r.items) for r in fake.requests] == [2, 2, 2]


async def test_samples_of_one_question_stay_together():
    fake = FakePlatform()
    calls = [item(f"q{i % 3}", f"e{i}") for i in range(12)]  # interleaved: q0 q1 q2 q0 …
    async with client(fake, max_items=5, window=0.02) as reward:
        # 12 calls flush at every fifth; what is pending then is cut along questions
        await asyncio.gather(*(reward.score(i) for i in calls))
    for request in fake.requests:
        questions = [i.question for i in request.items]
        assert questions == sorted(questions), "a question's items are neighbours"


async def test_different_specs_do_not_mix():
    fake = FakePlatform()
    async with client(fake) as reward:
        await asyncio.gather(reward.score(item("q")), reward.score(item("q"), spec=Preset.ss_only))
    assert sorted(r.spec.preset for r in fake.requests) == ["rlt", "ss_only"]


async def test_too_large_a_batch_is_sent_in_halves():
    fake = FakePlatform(refuse=lambda r: PayloadTooLarge() if r.content.count(b'"question"') > 3 else None)
    items = [item(f"q{i}") for i in range(10)]
    async with client(fake) as reward:
        scores = await asyncio.gather(*(reward.score(i) for i in items))
    assert [s.reward for s in scores] == [hashed_reward(i) for i in items]


async def test_one_item_that_is_too_large_fails_alone():
    fake = FakePlatform(refuse=lambda r: PayloadTooLarge() if b"huge" in r.content else None)
    async with client(fake) as reward:
        results = await asyncio.gather(
            *(reward.score(item(q)) for q in ("a", "huge", "b", "c")), return_exceptions=True
        )
    assert [isinstance(r, PayloadTooLarge) for r in results] == [False, True, False, False]


async def test_an_items_own_failure_is_not_a_number_and_not_raised():
    def reward_of(i: RewardItem) -> float:
        if i.question == "bad":
            raise ValueError("too_long")
        return -1.0

    async with client(FakePlatform(reward=reward_of)) as reward:
        good, bad = await asyncio.gather(reward.score(item("good")), reward.score(item("bad")))
    assert good.value() == -1.0
    assert bad.reward is None
    with pytest.raises(ItemError, match="too_long"):
        bad.value()


@pytest.mark.parametrize("refusal", [Overloaded(retry_after=0.01), Unavailable()])
async def test_overload_is_retried_until_it_passes(refusal):
    left = [refusal] * 3
    fake = FakePlatform(refuse=lambda _: left.pop() if left else None)
    async with client(fake) as reward:
        assert (await reward.score(item("q"))).reward == hashed_reward(item("q"))
    assert not left


async def test_overload_is_reported_when_the_deadline_is_near():
    fake = FakePlatform(refuse=lambda _: Overloaded("full", retry_after=60))
    async with client(fake, deadline=0.5) as reward:
        with pytest.raises(Overloaded, match="full"):
            await reward.score(item("q"))


async def test_refusals_are_not_retried():
    asked = []

    def refuse(_):
        asked.append(1)
        return Unauthorized()

    async with client(FakePlatform(refuse=refuse)) as reward:
        with pytest.raises(Unauthorized):
            await reward.score(item("q"))
    assert len(asked) == 1


async def test_problem_replies_become_their_exceptions():
    async with client(FakePlatform(refuse=lambda _: NotFound("no student 'x'", type="unknown_student"))) as reward:
        with pytest.raises(NotFound) as caught:
            await reward.score(item("q"), student="x")
    assert caught.value.type == "unknown_student"


async def test_a_service_that_is_not_there():
    async with AsyncRewardClient("http://127.0.0.1:9", deadline=0.5) as reward:
        with pytest.raises(TransportError, match=r"127\.0\.0\.1:9"):
            await reward.score(item("q"))


@pytest.mark.parametrize(("status", "body"), [(200, "<html>hello</html>"), (200, '{"items": []}'), (404, "<html>")])
async def test_another_program_at_that_address(status, body):
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=body))
    async with AsyncRewardClient("http://fake", transport=transport) as reward:
        with pytest.raises(ProtocolError):
            await reward.score(item("q"))


async def test_too_few_results_fail_every_caller():
    fake = FakePlatform()

    def short(request: httpx.Request) -> httpx.Response:
        body = fake.score(RewardRequest.model_validate_json(request.content))
        body.items.pop()
        return httpx.Response(200, text=body.model_dump_json(by_alias=True))

    async with AsyncRewardClient("http://fake", transport=httpx.MockTransport(short)) as reward:
        results = await asyncio.gather(*(reward.score(item(q)) for q in "ab"), return_exceptions=True)
    assert [type(r) for r in results] == [ProtocolError, ProtocolError]


async def test_a_callers_deadline_is_its_own():
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.3)
        return FakePlatform().handle(request)

    async with AsyncRewardClient("http://fake", transport=httpx.MockTransport(slow)) as reward:
        hurried, patient = await asyncio.gather(
            reward.score(item("a"), deadline=0.05), reward.score(item("b")), return_exceptions=True
        )
    assert isinstance(hurried, DeadlineExceeded)
    assert patient.reward == hashed_reward(item("b"))


async def test_a_request_is_cancelled_once_all_its_callers_have_gone():
    ended = asyncio.Event()

    async def endless(request: httpx.Request) -> httpx.Response:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        raise AssertionError

    async with AsyncRewardClient("http://fake", transport=httpx.MockTransport(endless)) as reward:
        calls = [asyncio.create_task(reward.score(item(q))) for q in "ab"]
        await asyncio.sleep(0.05)
        calls[0].cancel()
        await asyncio.sleep(0.02)
        assert not ended.is_set()
        calls[1].cancel()
        await asyncio.wait_for(ended.wait(), 60)


async def test_non_finite_log_probs_never_leave_the_caller():
    fake = FakePlatform()
    bad = RewardItem(
        question="q",
        answer="a",
        teacher=TeacherTokens(token_ids=[1, 2], logprobs=[-0.1, float("nan")], temperature=0.7),
    )
    async with client(fake) as reward:
        with pytest.raises(InvalidRequest, match="/items/0/teacher/logprobs"):
            await reward.score(bad)
    assert fake.requests == []


async def test_closing_cancels_what_is_queued():
    reward = client(FakePlatform(), window=60)
    call = asyncio.create_task(reward.score(item("q")))
    await asyncio.sleep(0.01)
    await reward.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 60)


def test_blocking_calls_of_many_threads_travel_together():
    fake = FakePlatform()
    items = [item(f"q{i}") for i in range(16)]
    scores = {}
    with RewardClient("http://fake", transport=fake.transport(), window=0.2) as reward:
        threads = [
            threading.Thread(target=lambda i=i: scores.__setitem__(i.question, reward.score(i).reward)) for i in items
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert scores == {i.question: hashed_reward(i) for i in items}
    assert len(fake.requests) < 16


def test_a_closed_blocking_client_says_so():
    reward = RewardClient("http://fake", transport=FakePlatform().transport())
    reward.close()
    reward.close()
    with pytest.raises(RuntimeError, match="closed"):
        reward.score(item("q"))


def test_over_a_real_socket():
    with FakePlatform().serve() as url, RewardClient(url) as reward:
        assert reward.score(item("q")).reward == hashed_reward(item("q"))
