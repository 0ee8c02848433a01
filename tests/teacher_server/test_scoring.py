"""What the teacher server asks of the reward server, and what it makes of its sampling beforehand."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlt_client.aio import AsyncRewardClient
from rlt_client.errors import InvalidRequest
from rlt_client.formats import shipped_formats
from rlt_client.schemas.explain import ExplainOptions, ExplanationFlag
from rlt_client.schemas.reward import KLSource, Preset, RewardItem, SpecRequest, TeacherTokens
from rlt_client.testing import make_score
from rlt_reward_server import app as reward_app
from rlt_reward_server.settings import Settings as RewardSettings
from rlt_service.testing import running
from rlt_teacher_server import scoring
from rlt_teacher_server.scoring import Scorer, ScoringPlan

MINI = shipped_formats()["mini"]
TEACHER = TeacherTokens(token_ids=[1], logprobs=[-1.0], temperature=1.0)
ITEM = RewardItem(question="Q 36 A +5", answer="41", explanation="36 A +5 41")


@pytest.fixture(scope="module")
def hosting_url(tiny_model: Path) -> Iterator[str]:
    given = RewardSettings(student=str(tiny_model), teacher=str(tiny_model), format="mini", threads=1)
    with running(lambda: reward_app.build(given)) as url:
        yield url


@asynccontextmanager
async def scorer_at(url: str, transport: httpx.AsyncBaseTransport | None = None) -> AsyncIterator[Scorer]:
    async with AsyncRewardClient(url, transport=transport, deadline=60, patience=0.1) as client:
        yield Scorer(client)


def options(**given: Any) -> ExplainOptions:
    return ExplainOptions(score=True, **given)


class Recorded(httpx.AsyncBaseTransport):
    """Answers as real reward servers did, one with and one without a teacher; is down or hangs if told so."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.down = False
        self.hangs = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if self.hangs:
            await asyncio.sleep(60)
        if self.down:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, json=self.answers[request.url.path])


Record = Callable[[str], Recorded]


@pytest.fixture(scope="module")
def answers(reward_url: str, hosting_url: str) -> dict[str, dict[str, Any]]:
    urls = {"alone": reward_url, "hosting": hosting_url}
    paths = ("/presets", "/models")
    return {name: {path: httpx.get(url + path).json() for path in paths} for name, url in urls.items()}


@pytest.fixture
def recorded(answers: dict[str, dict[str, Any]]) -> Record:
    return lambda name: Recorded(answers[name])


# Which samplings are of use


@pytest.mark.parametrize(
    ("given", "pointers"),
    [
        ({"temperature": 1.0}, ["/temperature"]),
        ({"temperature": 0}, ["/temperature"]),
        ({"top_p": 0.9}, ["/top_p"]),
        ({"top_k": 5}, ["/top_k"]),
        ({"temperature": 0.2, "top_p": 0.5, "top_k": 1}, ["/temperature", "/top_p", "/top_k"]),
        ({"spec": {"teacher_temperature": 1.0}}, ["/temperature"]),
        ({"spec": "kl_only", "temperature": 1.0}, ["/temperature"]),
        ({"spec": "rlt_segments", "top_k": 5}, ["/top_k"]),
        ({"spec": {"kl": "k3"}, "temperature": 1.0}, ["/temperature"]),
    ],
)
async def test_refused_where_nothing_hosts_a_teacher(
    reward_url: str, hosting_url: str, given: dict[str, Any], pointers: list[str]
) -> None:
    async with scorer_at(reward_url) as scorer, scorer_at(hosting_url) as hosting:
        with pytest.raises(InvalidRequest) as caught:
            await scorer.plan(options(**given))
        plan = await hosting.plan(options(**given))
    assert caught.value.type == "sampling_unusable_for_kl"
    assert [error.pointer for error in caught.value.errors] == pointers
    assert (plan.sends_logprobs, plan.unusable_logprobs) == (False, True)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"temperature": 0.7000000001, "top_k": -1},
        {"temperature": 1.0, "spec": {"teacher_temperature": 1.0}},
        {"temperature": 1.0, "top_p": 0.5, "top_k": 3, "spec": "ss_only"},
        {"temperature": 1.0, "spec": "rlpr"},
        {"temperature": 1.0, "spec": {"preset": "verifree", "teacher_temperature": 0.5}},
    ],
)
async def test_sent_where_they_are_of_use_or_nobody_needs_them(
    reward_url: str, hosting_url: str, given: dict[str, Any]
) -> None:
    for url in (reward_url, hosting_url):
        async with scorer_at(url) as scorer:
            plan = await scorer.plan(options(**given))
        assert (plan.sends_logprobs, plan.unusable_logprobs) == (True, False)


async def test_whole_distributions_are_the_hosted_teachers_at_any_sampling(hosting_url: str) -> None:
    async with scorer_at(hosting_url) as scorer:
        plan = await scorer.plan(options(spec={"kl": "exact"}, temperature=1.0))
    assert plan == ScoringPlan(SpecRequest.model_validate({"kl": "exact"}), sends_logprobs=False)


async def test_the_words_say_what_to_do(reward_url: str) -> None:
    async with scorer_at(reward_url) as scorer:
        with pytest.raises(InvalidRequest) as temperature:
            await scorer.plan(options(temperature=1.0))
        with pytest.raises(InvalidRequest) as both:
            await scorer.plan(options(temperature=0, top_p=0.5))
    words = str(temperature.value.detail)
    for way in ("temperature 0.7", "spec.teacher_temperature to 1", "`ss_only`", "--teacher"):
        assert way in words
    assert temperature.value.errors[0].detail == "is 1, the KL needs 0.7"
    assert "sample with temperature 0.7, top_p 1," in str(both.value.detail)
    assert "teacher_temperature" not in str(both.value.detail)


async def test_a_teacher_with_another_tokenizer_helps_with_segments_only(recorded: Record) -> None:
    transport = recorded("hosting")
    presets = transport.answers["/presets"]
    transport.answers = transport.answers | {"/presets": presets | {"kl": ["k1", "k3"]}}
    async with scorer_at("http://reward", transport) as scorer:
        plan = await scorer.plan(options(spec="rlt_segments", temperature=1.0))
        assert not plan.sends_logprobs
        with pytest.raises(InvalidRequest):
            await scorer.plan(options(spec="rlt", temperature=1.0))


async def test_what_the_reward_server_cannot_give_is_left_for_it_to_refuse(recorded: Record) -> None:
    transport = recorded("alone")
    listed = transport.answers["/presets"]
    few = [preset for preset in listed["presets"] if preset["name"] == "ss_only"]
    transport.answers = transport.answers | {"/presets": listed | {"presets": few}}
    async with scorer_at("http://reward", transport) as scorer:
        assert (await scorer.plan(options(temperature=1.0))).sends_logprobs


# What is sent, and what is said of it


def test_an_item_has_the_logprobs_or_the_text() -> None:
    sent = ScoringPlan(Preset.rlt).item("q", "a", "so #", TEACHER)
    hosted = ScoringPlan(Preset.rlt, sends_logprobs=False).item("q", "a", "so #", TEACHER)
    assert (sent.teacher, sent.completion) == (TEACHER, None)
    assert (hosted.teacher, hosted.completion) == (None, "so #")


def test_the_flag_says_that_a_hosted_teacher_stood_in() -> None:
    hosted, sent = (
        make_score().model_copy(update={"kl_source": source}) for source in (KLSource.hosted, KLSource.sent)
    )
    failed = make_score(error="kl_unavailable")
    stands_in = ScoringPlan(Preset.rlt, sends_logprobs=False, unusable_logprobs=True)
    assert stands_in.flags(hosted) == [ExplanationFlag.kl_hosted]
    assert stands_in.flags(failed) == []
    assert ScoringPlan(Preset.rlt).flags(sent) == []
    assert ScoringPlan(SpecRequest(), sends_logprobs=False).flags(hosted) == []  # exact KL is what was asked for


async def test_a_hosted_teacher_scores_what_was_sampled_at_another_temperature(hosting_url: str) -> None:
    async with scorer_at(hosting_url) as scorer:
        plan = await scorer.plan(options(temperature=1.0))
        item = plan.item(ITEM.question, ITEM.answer, "36 A +5 41 #", TEACHER)
        score = await scorer.score(item, spec=plan.spec, format=MINI)
    assert score.error is None
    assert score.reward is not None
    assert score.kl_source is KLSource.hosted
    assert plan.flags(score) == [ExplanationFlag.kl_hosted]


async def test_a_person_waits_for_it() -> None:
    asked: list[bytes] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request.content)
        return httpx.Response(404, json={"type": "unknown_format", "title": "", "status": 404})

    async with scorer_at("http://reward", httpx.MockTransport(refuse)) as scorer:
        item = RewardItem(question="q", answer="a", explanation="e")
        score = await scorer.score(item, spec=None, format=shipped_formats()["plain"])
    assert json.loads(asked[0])["priority"] == "interactive"
    assert score.error is not None
    assert (score.error.type, score.error.title) == ("scorer_unavailable", "The reward server refused")


# What is remembered


async def test_it_is_asked_once_for_many_requests(recorded: Record) -> None:
    transport = recorded("alone")
    async with scorer_at("http://reward", transport) as scorer:
        await asyncio.gather(*(scorer.plan(options()) for _ in range(50)))
        await scorer.plan(options())
    assert transport.asked == ["/presets", "/models"]


async def test_another_configuration_is_noticed_in_time(recorded: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "REMEMBERED_S", 0.05)
    transport, other = recorded("alone"), recorded("hosting")
    async with scorer_at("http://reward", transport) as scorer:
        with pytest.raises(InvalidRequest):
            await scorer.plan(options(temperature=1.0))
        transport.answers = other.answers
        await asyncio.sleep(0.06)
        assert not (await scorer.plan(options(temperature=1.0))).sends_logprobs


@pytest.mark.parametrize("failure", ["kl_unavailable", "scorer_unavailable"])
async def test_a_score_that_fails_has_it_asked_again(
    recorded: Record, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    monkeypatch.setattr(scoring, "SOON_S", 0.0)
    transport, other = recorded("hosting"), recorded("alone")
    async with scorer_at("http://reward", transport) as scorer:
        assert not (await scorer.plan(options(temperature=1.0))).sends_logprobs
        transport.answers = other.answers | {"/reward": _failed_reply(failure)}
        transport.down = failure == "scorer_unavailable"
        score = await scorer.score(ITEM, spec=None, format=MINI)
        assert score.error is not None
        assert score.error.type == failure
        transport.down = False
        with pytest.raises(InvalidRequest):
            await scorer.plan(options(temperature=1.0))


def _failed_reply(type: str) -> dict[str, Any]:
    model = {"name": "m", "revision": "r"}
    return {
        "items": [{"index": 0, "status": "score_error", "error": {"type": type, "title": ""}}],
        "student": model,
        "teacher": None,
        "format": MINI.ref.model_dump(),
        "spec": {
            "preset": "rlt",
            "kl": "k1",
            "lambda": 3,
            "ss_min_coef": 0.01,
            "kl_max_coef": 0.01,
            "format_penalty": -1,
            "student_temperature": 0.7,
            "teacher_temperature": 0.7,
        },
        "usage": {"items": 1, "scored": 0, "student_tokens": 0, "teacher_tokens": 0},
        "timing": {"queue_ms": 0, "engine_ms": 0, "overhead_ms": 0},
    }


async def test_a_reward_server_that_is_down_forbids_nothing(recorded: Record) -> None:
    transport = recorded("alone")
    transport.down = True
    async with scorer_at("http://reward", transport) as scorer:
        began = time.monotonic()
        plans = [await scorer.plan(options(temperature=1.0)) for _ in range(5)]
        assert time.monotonic() - began < 5 * scoring.PATIENCE_S  # not one by one
    assert all(plan.sends_logprobs for plan in plans)
    assert set(transport.asked) == {"/presets"}


async def test_a_reward_server_that_hangs_holds_nobody_up(recorded: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PATIENCE_S", 1.0)
    transport = recorded("alone")
    transport.hangs = True
    async with scorer_at("http://reward", transport) as scorer:
        began = time.monotonic()
        await asyncio.gather(*(scorer.plan(options(temperature=1.0)) for _ in range(20)))
        assert time.monotonic() - began < 10


async def test_what_it_last_said_is_used_while_it_is_down(recorded: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "REMEMBERED_S", 0.0)
    transport = recorded("hosting")
    async with scorer_at("http://reward", transport) as scorer:
        assert not (await scorer.plan(options(temperature=1.0))).sends_logprobs
        transport.down = True
        assert not (await scorer.plan(options(temperature=1.0))).sends_logprobs
